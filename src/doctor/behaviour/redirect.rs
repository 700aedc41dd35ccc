//! Are messages redirected at all, both ways?

use super::Check;
use super::check;
use super::link::Link;

pub const CHECK: Check = Check {
    if_not: super::Verdict::Fails,
    ..check(
        "redirect",
        run,
        "connections between event loops are accelerated",
        "nothing is accelerated on this kernel; programs run as on plain TCP",
    )
};

// That they are is asked of TCP before each check.
fn run(link: &mut Link) -> std::io::Result<()> {
    for _ in 0..3 {
        link.send("there");
        link.recv(10);
        link.mirror();
    }
    Ok(())
}
