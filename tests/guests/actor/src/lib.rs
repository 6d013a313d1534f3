//! Does what the payload says, so that one guest serves every test of what becomes of a delivery:
//!
//! `{"do": "emit", "n": 2, "seq": 7}` emits n events · `trap` · `spin` for ever · `retry` · `reject` · `grow` past any memory ·
//! `elsewhere` emits to a stream it was not granted · `not-json` · `trap-below` traps while the attempt is below n ·
//! `down-until` answers retry while the clock of the message is before `until_ms`, as a plugin does whose downstream is away.
//! Before it acts it is busy for `busy_us` microseconds' worth of work.

#[cfg(target_family = "wasm")]
mod guest {
    wit_bindgen::generate!({ world: "plugin", path: "../../../wit" });

    // The standard library of wasm32-unknown-unknown, on which this guest is built where there is no other, knows no clock.
    mod clock {
        wit_bindgen::generate!({ generate_all, inline: "
            package test:clock;
            world watch { import wasi:clocks/wall-clock@0.2.6; }
            package wasi:clocks@0.2.6 {
                interface wall-clock {
                    record datetime { seconds: u64, nanoseconds: u32 }
                    now: func() -> datetime;
                    resolution: func() -> datetime;
                }
            }
        " });

        pub(crate) fn now_ms() -> u64 {
            let now = wasi::clocks::wall_clock::now();
            now.seconds * 1_000 + u64::from(now.nanoseconds / 1_000_000)
        }
    }

    use cofferdam::plugin::config;
    use cofferdam::plugin::types::{Event, Failure, Message, RetryLater};
    use exports::cofferdam::plugin::handler::Guest;
    use serde_json::{Value, json};

    struct Actor;
    export!(Actor);

    fn event(stream: &str, payload: String) -> Event {
        Event { stream: stream.to_string(), payload, priority: None, key: None, attributes: Vec::new() }
    }

    impl Guest for Actor {
        fn handle(message: Message) -> Result<Vec<Event>, Failure> {
            let order: Value =
                serde_json::from_str(&message.payload).map_err(|error| Failure::Reject(error.to_string()))?;
            let number = |name: &str| order.get(name).and_then(Value::as_u64).unwrap_or(0);
            busy(number("busy_us"));
            let to = order.get("to").and_then(Value::as_str).unwrap_or("stream:out");
            match order.get("do").and_then(Value::as_str).unwrap_or("emit") {
                "emit" => {
                    let version = config::get("version").unwrap_or_default();
                    let one = |index| {
                        event(
                            to,
                            json!({"src": message.id, "seq": order.get("seq"), "index": index, "version": version})
                                .to_string(),
                        )
                    };
                    Ok((0..order.get("n").and_then(Value::as_u64).unwrap_or(1)).map(one).collect())
                }
                "trap" => panic!("the payload says trap"),
                "trap-below" if u64::from(message.attempt) < number("n") => {
                    panic!("attempt {} is below {}", message.attempt, number("n"))
                }
                "trap-below" => {
                    Ok(vec![event(to, json!({"src": message.id, "seq": order.get("seq"), "index": 0}).to_string())])
                }
                "spin" => loop {
                    std::hint::black_box(0);
                },
                "retry" => Err(Failure::Retry(RetryLater {
                    reason: "the payload says retry".into(),
                    after_ms: order.get("after_ms").and_then(Value::as_u64),
                })),
                "down-until" if clock::now_ms() < number("until_ms") => Err(Failure::Retry(RetryLater {
                    reason: "what is behind this plugin is down".into(),
                    after_ms: None,
                })),
                "down-until" => Ok(vec![event(to, json!({"src": message.id, "seq": order.get("seq")}).to_string())]),
                "reject" => Err(Failure::Reject("the payload says reject".into())),
                "grow" => {
                    let mut hoard = Vec::new();
                    loop {
                        hoard.push(vec![1u8; 1 << 20]);
                    }
                }
                "elsewhere" => Ok(vec![event("stream:not_granted", "{}".into())]),
                "not-json" => Ok(vec![event(to, "{not json".into())]),
                other => Err(Failure::Reject(format!("no such act: {other}"))),
            }
        }
    }

    /// Some thousand additions a microsecond on the machines of 2026.
    fn busy(microseconds: u64) {
        let mut sum = 0u64;
        for step in 0..microseconds * 1_000 {
            sum = std::hint::black_box(sum.wrapping_add(step));
        }
    }
}
