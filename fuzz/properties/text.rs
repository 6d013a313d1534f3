//! What must be true of every manifest and of every configuration: it is understood or refused in words, and no number in it, however
//! large, stops the program that reckons with it later.

use std::time::{Duration, Instant};

use crate::config::{Config, Overrides, RawConfig};
use crate::manifest::{Manifest, RawManifest};

/// Fails when it is not so.
pub(crate) fn holds(bytes: &[u8]) {
    let Ok(text) = str::from_utf8(bytes) else { return };
    manifest(text);
    configuration(text);
}

fn manifest(text: &str) {
    let manifest = match Manifest::parse(text, "fuzzed") {
        Ok((manifest, _)) => manifest,
        Err(error) => {
            assert!(!error.to_string().is_empty(), "refused without a word");
            return;
        }
    };
    // What the version's digest covers is the whole manifest, and says the same when it is read.
    let read: RawManifest = serde_json::from_str(&manifest.canonical).expect("the canonical text can be read");
    let written = serde_json::to_string(&read).expect("it was written before");
    assert_eq!(written, manifest.canonical, "the canonical text is not canonical");
    assert!(!manifest.subscribed.is_empty() && manifest.subscribed.len() == manifest.route.subscribe().len());
    for failures in [1, 2, manifest.retry.retries.saturating_add(1), u32::MAX] {
        for jitter in [0.0, 0.5, 1.0] {
            assert!(manifest.retry.backoff.delay(failures, jitter) <= Duration::from_secs(86_400));
        }
    }
    for subscribed in &manifest.subscribed {
        for now_ms in [0, 1, 1_795_418_457_352, u64::MAX] {
            let _ = subscribed.start.resolve(now_ms, now_ms % 2 == 0);
        }
    }
    is_a_time(manifest.limits.deadline);
}

fn configuration(text: &str) {
    let overrides = Overrides { data: Some("data".into()), ..Overrides::default() };
    let config = match RawConfig::read(text).and_then(|raw| Config::check(raw, &overrides, None)) {
        Ok(config) => config,
        Err(error) => {
            assert!(!format!("{error:#}").is_empty(), "refused without a word");
            return;
        }
    };
    // As the host reckons with them: `compile.rs`, the lanes' leases, and the way out.
    is_a_time(config.compile.time);
    is_a_time(config.delivery.lease);
    is_a_time(config.delivery.grace);
    for plugin in ["classify", "forward", ""] {
        is_a_time(config.policy(plugin).ceiling.deadline);
        let _ = config.site_config(plugin);
    }
    for stream in ["stream:attacks", ""] {
        let _ = (config.retention(stream), config.byte_budget(stream));
    }
}

/// Ten times as long is still a time, from now on.
fn is_a_time(span: Duration) {
    let ends = span.checked_mul(10).and_then(|long| Instant::now().checked_add(long));
    assert!(ends.is_some(), "{span:?} from now is no time");
}
