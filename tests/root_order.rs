//! Bytes arrive once, in order, whatever the mix of paths.

mod common;

use common::pair::Options;
use common::pair::Pair;
use common::warm::round_trip;

#[test]
fn plain_pairs_talk() {
    for options in [
        Options::default(),
        Options::blocking(),
        Options::v6(),
        Options::v4_mapped(),
    ] {
        round_trip(&Pair::with(&options));
    }
}
