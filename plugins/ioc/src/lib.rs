//! Takes indicators of compromise out of attack events: addresses, domains, URLs, file hashes, e-mail addresses.
//!
//! ```text
//! stream:attacks ──▶ indicators::of_attack ──▶ stream:threat_intel, one event an indicator
//!                       │
//!                       ├─ extract: text ─▶ indicators, defanged spellings understood
//!                       └─ scope: public, private, loopback, documentation …
//! ```

pub mod extract;
pub mod indicators;
pub mod scope;

/// The plugin's side of `wit/handler.wit`. It exists only in the WebAssembly build, so the logic is tested natively.
#[cfg(target_family = "wasm")]
mod guest {
    wit_bindgen::generate!({ world: "plugin", path: "../../wit" });

    use cofferdam::plugin::types::{Event, Failure, Message};
    use exports::cofferdam::plugin::handler::Guest;

    struct Plugin;
    export!(Plugin);

    impl Guest for Plugin {
        fn handle(message: Message) -> Result<Vec<Event>, Failure> {
            let reports = crate::indicators::of_attack(&message.payload, &message.timestamp)
                .map_err(|reason| Failure::Reject(reason.to_string()))?;
            let events = reports.into_iter().map(|report| Event {
                stream: "stream:threat_intel".to_string(),
                payload: report.payload.to_string(),
                // An indicator is as grave as the attack that it comes from.
                priority: None,
                // Whoever counts sightings downstream counts them by indicator.
                key: Some(report.value),
                attributes: Vec::new(),
            });
            Ok(events.collect())
        }
    }
}
