//! What every test of what is not accelerated asserts.

use super::instance::Instance;
use super::instance::Stats;

/// Every connection seen is in exactly one of enrolled, ejected, skipped.
pub fn assert_balanced(instance: &Instance) -> Stats {
    let stats = instance.stats();
    let sum = |object: &str| -> u64 {
        stats.0[object]
            .as_object()
            .unwrap_or_else(|| panic!("no {object} in {}", stats.0))
            .values()
            .map(|count| count.as_u64().expect("a count"))
            .sum()
    };
    let told = stats.count("enrolled") + sum("ejected") + sum("skipped");
    assert_eq!(stats.count("seen"), told, "the books: {}", stats.0);
    stats
}
