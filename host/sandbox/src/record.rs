//! Which functions of the host a call used, and how often: for whoever tries a plugin out. A host that serves does not record, and
//! pays one comparison a call.

use std::borrow::Cow;
use std::collections::BTreeMap;

/// Calls by the name of the function, as `interface#function`; where the engine does not tell the function, the interface alone.
pub type Calls = BTreeMap<Cow<'static, str>, u64>;

/// Whether a recorded call asked for something that the sandbox keeps shut: files, the network. To ask which files there are is
/// what every program does that starts, and the answer is none.
pub fn is_denied(name: &str) -> bool {
    name.starts_with("wasi:sockets/") || name.starts_with("wasi:filesystem/types")
}
