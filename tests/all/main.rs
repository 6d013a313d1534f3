//! One test program; this list says where a new test goes.

/// What is refused before it runs, and code that is compiled in a jail and kept under seal.
mod admission;
/// Limits that keep Redis from filling up, reached and left.
mod alarms;
/// What waits until somebody approves it: more than before, a manifest from inside, a circle.
mod approval;
/// Inputs that a person, a producer or a plugin can get wrong.
mod bad_input;
/// The program as a newcomer uses it.
mod command_line;
/// Hosts killed, stopped and resumed under load.
mod crash;
/// Dead letters in the hands of operators: several at once, and letters that hold less than their entry.
mod dead_letters;
/// Loops, and what they do to their neighbours.
mod deadline;
/// Unknown code, and what it is seen to do.
mod detonating;
/// Every code block of the README and of docs/.
mod documents;
/// Another server in the place of Redis: promotion, Sentinel.
mod failover;
/// What several hosts do to one another's plugins, and how it is shown.
mod fleet;
/// Hosts of two formats on one Redis.
mod formats;
/// Guests that mean harm, all 80 kinds of them.
mod hostile;
/// What a file says of itself.
mod inspecting;
/// What becomes of a delivery: every outcome and fault, and what is left in Redis.
mod life;
/// Downstreams that are away, parked entries, and fleets with nothing to do.
mod load;
/// Bugs on purpose, each with the damage that it does: what the other tests would have to see.
mod mutants;
/// Which file has a plugin's name, and which plugin a group.
mod names;
/// Connections cut, silent, slow and reset, replies lost, Redis killed: nothing lost, doubled or charged.
mod network;
/// Every error that a Redis can answer with when it cannot serve.
mod network_errors;
/// What operators do to the Redis that hosts are at work on.
mod operators;
/// Messages of one key in their order, over retries and hand-overs.
mod ordered;
/// The failures of the original pipeline, each by name.
mod original;
/// Versions swapped under load, half of them broken.
mod reload;
/// Users of Redis that may do less than a host needs.
mod rights;
/// Hosts that come and go, and two of one name.
mod rolling;
/// Who vouches for a plugin.
mod signatures;
/// Power, memory, disk and clock of Redis, failing under load.
mod storage;
/// A plugin over its cases and over logs, without a host.
mod testing;
/// Arrows between crates, bans, guests without a test.
mod tidy;
/// Faults planted by hand into what a host has done, and a system at work: what `verify` says of them.
mod verify;
/// Versions that are rolled back, by a person and by themselves.
mod versions;
/// The ways in which files come into a watched folder.
mod watching;
/// The inherited wire format, byte for byte, in and out.
mod wire;
