//! The pause before the next look at a source. Pure.

use std::time::Duration;

/// The first pause after a failure.
const FIRST: Duration = Duration::from_secs(2);
/// Pauses after failures grow up to this, or to the interval if that is longer.
const LONG: Duration = Duration::from_secs(60);

/// The pause after `failures` consecutive failures. `chance`, uniformly distributed, spreads the looks
/// of hosts that began at the same moment.
pub(super) fn pause(interval: Duration, failures: u32, chance: u32) -> Duration {
    let chance = f64::from(chance) / f64::from(u32::MAX);
    if failures == 0 {
        // Plus or minus 5 percent.
        return interval.mul_f64(0.95 + 0.1 * chance);
    }
    let most = interval.max(LONG);
    let doubled = FIRST.saturating_mul(1 << (failures - 1).min(20));
    doubled.min(most).mul_f64(0.5 + 0.5 * chance)
}

/// A random number, or the middle one where the kernel gives none.
pub(super) fn chance() -> u32 {
    getrandom::u32().unwrap_or(u32::MAX / 2)
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);

    #[test]
    fn pauses_grow_to_the_interval_and_are_spread() {
        let most = |failures| pause(HOUR, failures, u32::MAX).as_secs();
        let most: Vec<u64> = [1, 2, 3, 11, 12, 100, u32::MAX].map(most).into();
        assert_eq!(most, [2, 4, 8, 2048, 3600, 3600, 3600]);
        assert_eq!(pause(HOUR, 3, 0).as_secs(), 4);
        // A server that is asked often is asked less often while it fails.
        let second = Duration::from_secs(1);
        assert_eq!(pause(second, 30, u32::MAX).as_secs(), 60);
        let regular = [0, u32::MAX].map(|chance| pause(HOUR, 0, chance).as_secs());
        assert_eq!(regular, [3420, 3780]);
    }
}
