//! What must be true of every guest that loads, whatever it does: the call comes back in time with an answer or a fault that is the
//! guest's own, within its memory, and the same call has the same answer.

use std::sync::Arc;
use std::time::Duration;

use cofferdam_model::{EntryId, Fault, Message, ReasonCode};
use cofferdam_sandbox::{Call, Plugin, Report, STACK_BYTES, Slot, invoke};

use super::admission::{DEADLINE, MEMORY_BYTES, engine, spec};

/// How much later than its deadline a call may come back. A handler is stopped within two ticks of 5 ms; this is for machines that do
/// other things too, and for code that is built to be watched.
const PATIENCE: Duration = Duration::from_secs(5);

/// Fails when it does anything else. What does not load is no guest.
pub(crate) fn holds(wasm: &[u8]) {
    let Ok(plugin) = Plugin::load(engine(), wasm, spec()) else { return };
    let plugin = Arc::new(plugin);
    // A guest recurses as deep as its stack goes, and the stack of a test's thread ends before that.
    let thread = std::thread::Builder::new().stack_size(8 * STACK_BYTES);
    let calls = thread.spawn(move || (call(&plugin), call(&plugin))).expect("a thread can be started");
    let (first, second) = calls.join().expect("a call never panics");
    for report in [&first, &second] {
        assert!(report.took < DEADLINE + PATIENCE, "the call took {:?}", report.took);
        assert!(report.memory_bytes <= MEMORY_BYTES, "it has {} bytes of memory", report.memory_bytes);
        assert!(!matches!(report.result, Err(Fault::Host { .. })), "the host takes the blame: {:?}", report.result);
    }
    let timed = |report: &Report| match &report.result {
        Err(Fault::Deadline { .. }) => true,
        // Noticed at a tick, wherever the guest is by then.
        Err(Fault::Limit { code, .. }) => *code == ReasonCode::HostCalls,
        _ => false,
    };
    let code = |report: &Report| report.result.as_ref().err().map(Fault::code);
    if timed(&first) && timed(&second) {
        return;
    }
    let late = |report: &Report| code(report) == Some(ReasonCode::Deadline);
    if !late(&first) && !late(&second) {
        assert_eq!(first.result, second.result, "the same call has another answer");
        assert_eq!(first.log, second.log, "the same call has another log");
    }
}

fn call(plugin: &Arc<Plugin>) -> Report {
    let message = Message {
        id: EntryId { ms: 1_795_418_457_352, seq: 0 },
        message_id: String::from("1795418457352-0"),
        stream: "stream:in".into(),
        payload: String::from(r#"{"src_ip":"203.0.113.7","n":7}"#),
        priority: 2,
        timestamp: String::new(),
        producer_id: String::from("fuzz"),
        key: None,
        attributes: Vec::new(),
    };
    invoke(plugin, &mut Slot::default(), &Call { message: &message, attempt: 1, started_ms: 1_795_418_457_400 })
}
