//! Whether a new version is clearly worse than the one before: arithmetic on two counts.

/// Deliveries of a new version that are watched: after them it has proved itself.
pub const WATCHED: u64 = 200;
/// Deliveries before which nothing is said: a handful of bad messages is no evidence against a version.
pub const WATCHED_MIN: u64 = 20;
/// Standard deviations of the bounds below: at 2.58, one in a hundred intervals misses the true rate.
const Z: f64 = 2.58;

/// How the deliveries of a version ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Fared {
    /// With events, or with none on purpose.
    pub ok: u64,
    /// With a failure or a fault of the plugin.
    pub failed: u64,
}

impl Fared {
    /// All that ended.
    pub fn total(&self) -> u64 {
        self.ok + self.failed
    }

    /// Between which shares the failures lie, as far as the counts tell: Wilson's score interval (E. B. Wilson, 1927), which holds
    /// for few deliveries and for shares near 0 and 1 too.
    fn bounds(&self) -> (f64, f64) {
        if self.total() == 0 {
            return (0.0, 1.0);
        }
        let n = self.total() as f64;
        let (share, z2) = (self.failed as f64 / n, Z * Z);
        let centre = share + z2 / (2.0 * n);
        let spread = Z * (share * (1.0 - share) / n + z2 / (4.0 * n * n)).sqrt();
        let scale = 1.0 + z2 / n;
        ((centre - spread) / scale, (centre + spread) / scale)
    }
}

/// Whether a version fails clearly more often than the one before did: even the lowest share that its counts allow is above the
/// highest that the other's allow. A version before which nothing ran is never worse.
pub fn is_worse(new: Fared, before: Fared) -> bool {
    new.total() >= WATCHED_MIN && new.bounds().0 > before.bounds().1
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fared(ok: u64, failed: u64) -> Fared {
        Fared { ok, failed }
    }

    #[test]
    fn a_version_that_fails_where_the_one_before_did_not_is_worse() {
        assert!(is_worse(fared(0, 20), fared(100, 0)));
        assert!(is_worse(fared(100, 100), fared(10_000, 100)));
        assert!(is_worse(fared(15, 15), fared(300, 3)));
    }

    #[test]
    fn what_chance_or_an_outage_of_both_explains_is_not() {
        assert!(!is_worse(fared(190, 10), fared(950, 50)), "as many as before");
        assert!(!is_worse(fared(195, 5), fared(1_000, 3)), "a few more than before");
        assert!(!is_worse(fared(0, 200), fared(0, 1_000)), "whatever both depend on is down");
        assert!(!is_worse(fared(0, WATCHED_MIN - 1), fared(1_000, 0)), "too few to say");
        assert!(!is_worse(fared(0, 200), fared(0, 0)), "nothing to compare with");
    }
}
