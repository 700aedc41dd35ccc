//! `disable` under a live connection with unread redirected data: it goes on
//! as plain TCP, and no byte is lost. The last check: it ends the instance.

use std::io;
use std::process::Child;
use std::process::Stdio;

use super::Check;
use super::Verdict;
use super::check;
use super::link::Link;

pub const CHECK: Check = Check {
    if_not: Verdict::Fails,
    ..check(
        "drain",
        run,
        "after disable a live connection goes on as plain TCP, with all its data",
        "connections that are alive during disable lose data: restart the programs of the \
         cgroups after disable",
    )
};

fn run(link: &mut Link) -> io::Result<()> {
    link.send("unread ");
    link.mirror();
    link.send("unread too");
    link.mirror();
    // It may wait for what is read only now.
    let mut disable = Disable::start(link)?;
    link.until_readable();
    link.recv(3);
    link.mirror();
    link.until_readable();
    link.recv(20);
    link.mirror();
    link.recv(20);
    let trouble = disable.finish()?;
    if let Some(trouble) = trouble {
        link.note("disable", trouble);
    }
    for _ in 0..3 {
        link.send("as plain TCP");
        link.recv(20);
        link.mirror();
    }
    link.shut();
    link.recv(20);
    Ok(())
}

/// The running command, where there is anything to disable.
struct Disable(Option<Child>);

impl Disable {
    fn start(link: &mut Link) -> io::Result<Self> {
        let Some(mut command) = link.disable.take() else {
            return Ok(Self(None));
        };
        let child = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()?;
        Ok(Self(Some(child)))
    }

    /// What it complained about.
    fn finish(&mut self) -> io::Result<Option<String>> {
        let Some(child) = self.0.take() else {
            return Ok(None);
        };
        let output = child.wait_with_output()?;
        let said = String::from_utf8_lossy(&output.stderr);
        Ok((!output.status.success()).then(|| format!("{}: {}", output.status, said.trim())))
    }
}

impl Drop for Disable {
    fn drop(&mut self) {
        if let Some(mut child) = self.0.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}
