//! Where `adopt` works.

use nix::sys::utsname::uname;

use super::books::assert_balanced;
use super::cgroup::Cgroup;
use super::instance::Instance;
use super::pair::Pair;
use super::warm::round_trip;

/// Before Linux 6.12 it is refused.
pub fn works_here() -> bool {
    let release = uname().expect("uname").release().to_owned();
    let release = release.to_str().expect("UTF-8");
    let mut numbers = release.split('.').map_while(|n| n.parse::<u32>().ok());
    (numbers.next(), numbers.next()) >= (Some(6), Some(12))
}

/// Where it is, sees that it changes nothing, which is all there is to see.
pub fn refused_here() -> bool {
    if works_here() {
        return false;
    }
    let cgroup = Cgroup::new("adopt");
    let _joined = cgroup.join();
    let pair = Pair::new();
    let instance = Instance::enable(&cgroup, &[]);
    let ran = instance.run(&["adopt"]);
    assert_eq!(ran.code, Some(3), "{ran:?}");
    assert!(ran.stderr.contains("Linux 6.12"), "{ran:?}");
    for _ in 0..5 {
        round_trip(&pair);
    }
    assert_eq!(assert_balanced(&instance).count("seen"), 0);
    true
}
