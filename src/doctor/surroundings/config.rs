//! The kernel's build configuration, where it can be read, and lockdown(7).

use std::fs;
use std::io;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use nix::sys::utsname::uname;

use super::super::finding::Finding;
use super::super::finding::Topic;
use super::super::finding::Verdict;
use super::super::guard::Guard;
use super::super::guard::Stop;

/// Build options.
pub const TOPIC: Topic = Topic {
    name: "kernel_config",
    sound: "the kernel is built with what the programs need and with the BPF compiler",
    otherwise: "without the first nothing can be enabled; without CONFIG_BPF_JIT the programs are \
                interpreted, and acceleration may be slower than plain TCP",
};

/// lockdown(7)
pub const LOCKDOWN: Topic = Topic {
    name: "lockdown",
    sound: "the kernel lets BPF programs read its memory",
    otherwise: "BPF programs may not read kernel memory, and nothing is accelerated",
};

const NEEDED: &[&str] = &[
    "CONFIG_INET",
    "CONFIG_BPF_SYSCALL",
    "CONFIG_CGROUP_BPF",
    "CONFIG_NET_SOCK_MSG",
    "CONFIG_DEBUG_INFO_BTF",
    "CONFIG_PERF_EVENTS",
    "CONFIG_BPF_EVENTS",
    "CONFIG_FTRACE_SYSCALLS",
];

const FOR_SPEED: &[&str] = &["CONFIG_BPF_JIT"];

const LIMIT: Duration = Duration::from_secs(2);

/// Reads /proc/config.gz, or the file that distributions put into /boot.
///
/// # Errors
///
/// [`Stop::Interrupted`]
pub fn look(guard: &Guard) -> Result<Finding, Stop> {
    let packed = Path::new("/proc/config.gz");
    if packed.exists() {
        let mut command = Command::new("gzip");
        return match guard.run(command.args(["-c", "-d"]).arg(packed), LIMIT) {
            Ok(answer) if answer.status == Some(0) => Ok(judge(&answer.stdout, packed)),
            Ok(answer) => Ok(TOPIC.finding(Verdict::NotChecked, answer.stderr.trim())),
            Err(stop) => Ok(TOPIC.finding(Verdict::NotChecked, stop.reason()?)),
        };
    }
    let release = uname().map(|names| names.release().to_string_lossy().into_owned());
    let path = format!("/boot/config-{}", release.unwrap_or_default());
    Ok(match fs::read_to_string(&path) {
        Ok(text) => judge(&text, Path::new(&path)),
        Err(error) => TOPIC.finding(
            Verdict::NotChecked,
            format!("no /proc/config.gz, and {path}: {error}"),
        ),
    })
}

fn judge(text: &str, source: &Path) -> Finding {
    let without = |names: &[&str]| -> Vec<String> {
        names
            .iter()
            .filter(|name| !text.lines().any(|line| line == format!("{name}=y")))
            .map(|name| (*name).to_owned())
            .collect()
    };
    let source = source.display();
    let (needed, speed) = (without(NEEDED), without(FOR_SPEED));
    if !needed.is_empty() {
        return TOPIC.finding(
            Verdict::Fails,
            format!("without {} ({source})", needed.join(", ")),
        );
    }
    if !speed.is_empty() {
        return TOPIC.finding(
            Verdict::Differs,
            format!("without {} ({source})", speed.join(", ")),
        );
    }
    match fs::read_to_string("/proc/sys/net/core/bpf_jit_enable") {
        Ok(value) if value.trim() == "0" => {
            TOPIC.finding(Verdict::Differs, "net.core.bpf_jit_enable is 0")
        }
        _ => TOPIC.finding(Verdict::Ok, source.to_string()),
    }
}

/// What lockdown the kernel is under.
pub fn lockdown() -> Finding {
    judge_lockdown(fs::read_to_string("/sys/kernel/security/lockdown"))
}

fn judge_lockdown(read: io::Result<String>) -> Finding {
    match read {
        Ok(text) => {
            let mode = text
                .split(['[', ']'])
                .nth(1)
                .unwrap_or(text.trim())
                .to_owned();
            let verdict = match mode.as_str() {
                "none" | "integrity" => Verdict::Ok,
                "confidentiality" => Verdict::Fails,
                _ => Verdict::NotChecked,
            };
            LOCKDOWN.finding(verdict, mode)
        }
        Err(error) => LOCKDOWN.finding(
            Verdict::NotChecked,
            format!("/sys/kernel/security/lockdown: {error}; is securityfs mounted?"),
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn configurations() {
        let all: Vec<&str> = [NEEDED, FOR_SPEED].concat();
        let all = all.join("=y\n") + "=y\n";
        let source = Path::new("/boot/config");
        for name in NEEDED {
            let text = all.replace(&format!("{name}=y\n"), &format!("# {name} is not set\n"));
            let finding = judge(&text, source);
            assert_eq!(finding.result, Verdict::Fails, "{name}");
            assert!(finding.found.contains(name), "{}", finding.found);
        }
        let slow = judge(&all.replace("CONFIG_BPF_JIT=y", "CONFIG_BPF_JIT=n"), source);
        assert_eq!(slow.result, Verdict::Differs);
        assert_ne!(judge(&all, source).result, Verdict::Fails);
    }

    #[test]
    fn lockdown_modes() {
        use Verdict::Fails;
        use Verdict::NotChecked;
        let cases = [
            ("[none] integrity confidentiality\n", Verdict::Ok, "none"),
            (
                "none [integrity] confidentiality\n",
                Verdict::Ok,
                "integrity",
            ),
            (
                "none integrity [confidentiality]\n",
                Fails,
                "confidentiality",
            ),
            ("", NotChecked, ""),
        ];
        for (text, verdict, mode) in cases {
            let finding = judge_lockdown(Ok(text.to_owned()));
            assert_eq!((finding.result, finding.found.as_str()), (verdict, mode));
        }
        let absent = judge_lockdown(Err(io::ErrorKind::NotFound.into()));
        assert_eq!(absent.result, NotChecked);
    }
}
