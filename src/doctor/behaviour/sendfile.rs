//! sendfile(2) between two sends.

use std::fs::File;
use std::io;
use std::io::Write as _;

use nix::sys::memfd::MFdFlags;
use nix::sys::memfd::memfd_create;
use nix::sys::sendfile::sendfile;

use super::Check;
use super::Verdict;
use super::check;
use super::link::Link;
use super::link::received;

pub const CHECK: Check = Check {
    if_not: Verdict::Fails,
    ..check(
        "sendfile",
        run,
        "sendfile(2) keeps its place between other sends",
        "programs that mix send and sendfile send garbled data: nginx, Apache httpd, Kafka",
    )
};

fn run(link: &mut Link) -> io::Result<()> {
    let mut file = File::from(memfd_create("sockaccel-doctor", MFdFlags::MFD_CLOEXEC)?);
    file.write_all(b"of a file")?;
    link.send("head ");
    let mut at = 0;
    let sent = sendfile(&link.a, &file, Some(&mut at), 100)?;
    link.note("sendfile", sent.to_string());
    link.send(" tail");
    let mut text = String::new();
    while text.len() < 19 {
        match received(
            &link.b,
            link.programs,
            100,
            nix::sys::socket::MsgFlags::empty(),
        ) {
            part if part.starts_with('"') => text.push_str(part.trim_matches('"')),
            other => {
                text.push_str(&other);
                break;
            }
        }
    }
    link.note("text", text);
    Ok(())
}
