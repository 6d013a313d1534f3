//! WASI 0.2 and preview 1 as sealed stubs, so that what ordinary toolchains make can be loaded and run.
//!
//! A guest finds no arguments, no environment (a command: its `[config]`), no files and no network. What it can use is ours:
//! clocks and randomness that are functions of the delivery (`time.rs`), output streams that become log lines (`console.rs`),
//! and waits that end at the deadline. The remaining interfaces (files, sockets, terminals) are wasmtime-wasi's over a
//! context that grants nothing. No function here touches an asynchronous runtime: streams are always ready, so a future
//! that is not ready is waiting for an alarm, and [`wait`] sleeps until then.

use std::future::Future;
use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use tokio::io::AsyncWrite;
use wasmtime::component::{HasData, HasSelf, Linker, Resource, ResourceTable};
use wasmtime_wasi::cli::{IsTerminal, StdoutStream};
use wasmtime_wasi::p2::bindings::{cli, clocks, filesystem, random, sockets, sync};
use wasmtime_wasi::p2::pipe::{ClosedInputStream, MemoryInputPipe};
use wasmtime_wasi::p2::{
    DynInputStream, DynOutputStream, DynPollable, OutputStream, Pollable, StreamError, StreamResult, subscribe,
};
use wasmtime_wasi::{HostMonotonicClock, HostWallClock, async_trait};
use wasmtime_wasi_io::bindings::wasi::io as plain;

use crate::console::Console;
use crate::error::Stop;
use crate::store::{State, Wait};
use crate::time::{Alarm, RESOLUTION_NS, VirtualTime};

/// Bytes that one write to a stream may carry: the size that WASI itself suggests.
const WRITE_BYTES_MAX: usize = 64 * 1024;

/// Runs a future of WASI to its end on this thread. The only thing that any of them waits for is an alarm.
///
/// # Errors
/// When the deadline passes first.
pub(crate) fn wait<T>(wait: &Wait, future: impl Future<Output = T>) -> Result<T, Stop> {
    let mut future = pin!(future);
    let mut context = Context::from_waker(Waker::noop());
    loop {
        wait.time.rest();
        if let Poll::Ready(value) = future.as_mut().poll(&mut context) {
            return Ok(value);
        }
        let wake_ns = wait.time.wake_ns();
        let left = wake_ns.map(|wake| Duration::from_nanos(wake.saturating_sub(wait.time.now_ns())));
        wait.sleep(left)?;
        if let Some(wake_ns) = wake_ns {
            wait.time.slept_until(wake_ns);
        }
    }
}

/// Everything of WASI 0.2 that a guest may import.
pub(crate) fn add_to_linker(linker: &mut Linker<State>) -> wasmtime::Result<()> {
    let l = linker;
    plain::error::add_to_linker::<State, Errors>(l, |state| &mut state.table)?;
    sync::io::poll::add_to_linker::<State, HasSelf<State>>(l, |state| state)?;
    sync::io::streams::add_to_linker::<State, HasSelf<State>>(l, |state| state)?;
    clocks::monotonic_clock::add_to_linker::<State, HasSelf<State>>(l, |state| state)?;
    clocks::wall_clock::add_to_linker::<State, HasSelf<State>>(l, |state| state)?;
    random::random::add_to_linker::<State, HasSelf<State>>(l, |state| state)?;
    random::insecure::add_to_linker::<State, HasSelf<State>>(l, |state| state)?;
    random::insecure_seed::add_to_linker::<State, HasSelf<State>>(l, |state| state)?;
    cli::environment::add_to_linker::<State, HasSelf<State>>(l, |state| state)?;
    cli::exit::add_to_linker::<State, HasSelf<State>>(l, |state| state)?;
    cli::stdin::add_to_linker::<State, HasSelf<State>>(l, |state| state)?;
    cli::stdout::add_to_linker::<State, HasSelf<State>>(l, |state| state)?;
    cli::stderr::add_to_linker::<State, HasSelf<State>>(l, |state| state)?;
    filesystem::preopens::add_to_linker::<State, HasSelf<State>>(l, |state| state)?;

    // From here on nothing can be had: wasmtime-wasi's own functions over a context without grants.
    use wasmtime_wasi::cli::{WasiCli, WasiCliView as _};
    use wasmtime_wasi::filesystem::{WasiFilesystem, WasiFilesystemView as _};
    use wasmtime_wasi::sockets::{WasiSockets, WasiSocketsView as _};
    cli::terminal_input::add_to_linker::<State, WasiCli>(l, |state| state.noted("wasi:cli/terminal-input").cli())?;
    cli::terminal_output::add_to_linker::<State, WasiCli>(l, |state| state.noted("wasi:cli/terminal-output").cli())?;
    cli::terminal_stdin::add_to_linker::<State, WasiCli>(l, |state| state.noted("wasi:cli/terminal-stdin").cli())?;
    cli::terminal_stdout::add_to_linker::<State, WasiCli>(l, |state| state.noted("wasi:cli/terminal-stdout").cli())?;
    cli::terminal_stderr::add_to_linker::<State, WasiCli>(l, |state| state.noted("wasi:cli/terminal-stderr").cli())?;
    sync::filesystem::types::add_to_linker::<State, WasiFilesystem>(l, |state| {
        state.noted("wasi:filesystem/types").filesystem()
    })?;
    sockets::instance_network::add_to_linker::<State, WasiSockets>(l, |state| {
        state.noted("wasi:sockets/instance-network").sockets()
    })?;
    let options = sockets::network::LinkOptions::default();
    sockets::network::add_to_linker::<State, WasiSockets>(l, &options, |state| {
        state.noted("wasi:sockets/network").sockets()
    })?;
    sockets::ip_name_lookup::add_to_linker::<State, WasiSockets>(l, |state| {
        state.noted("wasi:sockets/ip-name-lookup").sockets()
    })?;
    sockets::tcp_create_socket::add_to_linker::<State, WasiSockets>(l, |state| {
        state.noted("wasi:sockets/tcp-create-socket").sockets()
    })?;
    sync::sockets::tcp::add_to_linker::<State, WasiSockets>(l, |state| state.noted("wasi:sockets/tcp").sockets())?;
    sync::sockets::udp::add_to_linker::<State, WasiSockets>(l, |state| state.noted("wasi:sockets/udp").sockets())?;
    sync::sockets::udp_create_socket::add_to_linker::<State, WasiSockets>(l, |state| {
        state.noted("wasi:sockets/udp-create-socket").sockets()
    })?;
    Ok(())
}

struct Errors;

impl HasData for Errors {
    type Data<'a> = &'a mut ResourceTable;
}

impl sync::io::poll::Host for State {
    fn poll(&mut self, pollables: Vec<Resource<DynPollable>>) -> wasmtime::Result<Vec<u32>> {
        self.host_call("wasi:io/poll#poll")?;
        wait(&self.wait, plain::poll::Host::poll(&mut self.table, pollables))?
    }
}

impl sync::io::poll::HostPollable for State {
    fn ready(&mut self, pollable: Resource<DynPollable>) -> wasmtime::Result<bool> {
        self.host_call("wasi:io/poll#ready")?;
        wait(&self.wait, plain::poll::HostPollable::ready(&mut self.table, pollable))?
    }

    fn block(&mut self, pollable: Resource<DynPollable>) -> wasmtime::Result<()> {
        self.host_call("wasi:io/poll#block")?;
        wait(&self.wait, plain::poll::HostPollable::block(&mut self.table, pollable))?
    }

    fn drop(&mut self, pollable: Resource<DynPollable>) -> wasmtime::Result<()> {
        self.host_call("wasi:io/poll#drop")?;
        plain::poll::HostPollable::drop(&mut self.table, pollable)
    }
}

/// A stop inside a function that answers with stream errors.
fn trap(stop: Stop) -> StreamError {
    StreamError::Trap(stop.into())
}

/// The asynchronous stream errors in the words of the synchronous ones: the same two cases.
impl sync::io::streams::Host for State {
    fn convert_stream_error(&mut self, error: StreamError) -> wasmtime::Result<sync::io::streams::StreamError> {
        let error = plain::streams::Host::convert_stream_error(&mut self.table, error)?;
        Ok(match error {
            plain::streams::StreamError::Closed => sync::io::streams::StreamError::Closed,
            plain::streams::StreamError::LastOperationFailed(error) => {
                sync::io::streams::StreamError::LastOperationFailed(error)
            }
        })
    }
}

type Input = Resource<DynInputStream>;
type Output = Resource<DynOutputStream>;

impl sync::io::streams::HostOutputStream for State {
    fn check_write(&mut self, stream: Output) -> StreamResult<u64> {
        self.host_call("wasi:io/streams#check-write").map_err(trap)?;
        plain::streams::HostOutputStream::check_write(&mut self.table, stream)
    }

    fn write(&mut self, stream: Output, bytes: Vec<u8>) -> StreamResult<()> {
        self.host_call("wasi:io/streams#write").map_err(trap)?;
        plain::streams::HostOutputStream::write(&mut self.table, stream, bytes)
    }

    fn blocking_write_and_flush(&mut self, stream: Output, bytes: Vec<u8>) -> StreamResult<()> {
        self.host_call("wasi:io/streams#blocking-write-and-flush").map_err(trap)?;
        let table = &mut self.table;
        wait(&self.wait, plain::streams::HostOutputStream::blocking_write_and_flush(table, stream, bytes))
            .map_err(trap)?
    }

    fn flush(&mut self, stream: Output) -> StreamResult<()> {
        self.host_call("wasi:io/streams#flush").map_err(trap)?;
        plain::streams::HostOutputStream::flush(&mut self.table, stream)
    }

    fn blocking_flush(&mut self, stream: Output) -> StreamResult<()> {
        self.host_call("wasi:io/streams#blocking-flush").map_err(trap)?;
        wait(&self.wait, plain::streams::HostOutputStream::blocking_flush(&mut self.table, stream)).map_err(trap)?
    }

    fn subscribe(&mut self, stream: Output) -> wasmtime::Result<Resource<DynPollable>> {
        self.host_call("wasi:io/streams#subscribe")?;
        plain::streams::HostOutputStream::subscribe(&mut self.table, stream)
    }

    fn write_zeroes(&mut self, stream: Output, len: u64) -> StreamResult<()> {
        self.host_call("wasi:io/streams#write-zeroes").map_err(trap)?;
        plain::streams::HostOutputStream::write_zeroes(&mut self.table, stream, len)
    }

    fn blocking_write_zeroes_and_flush(&mut self, stream: Output, len: u64) -> StreamResult<()> {
        self.host_call("wasi:io/streams#blocking-write-zeroes-and-flush").map_err(trap)?;
        let table = &mut self.table;
        wait(&self.wait, plain::streams::HostOutputStream::blocking_write_zeroes_and_flush(table, stream, len))
            .map_err(trap)?
    }

    fn splice(&mut self, stream: Output, from: Input, len: u64) -> StreamResult<u64> {
        self.host_call("wasi:io/streams#splice").map_err(trap)?;
        plain::streams::HostOutputStream::splice(&mut self.table, stream, from, len)
    }

    fn blocking_splice(&mut self, stream: Output, from: Input, len: u64) -> StreamResult<u64> {
        self.host_call("wasi:io/streams#blocking-splice").map_err(trap)?;
        let table = &mut self.table;
        wait(&self.wait, plain::streams::HostOutputStream::blocking_splice(table, stream, from, len)).map_err(trap)?
    }

    fn drop(&mut self, stream: Output) -> wasmtime::Result<()> {
        self.host_call("wasi:io/streams#drop")?;
        wait(&self.wait, plain::streams::HostOutputStream::drop(&mut self.table, stream))?
    }
}

impl sync::io::streams::HostInputStream for State {
    fn read(&mut self, stream: Input, len: u64) -> StreamResult<Vec<u8>> {
        self.host_call("wasi:io/streams#read").map_err(trap)?;
        plain::streams::HostInputStream::read(&mut self.table, stream, len)
    }

    fn blocking_read(&mut self, stream: Input, len: u64) -> StreamResult<Vec<u8>> {
        self.host_call("wasi:io/streams#blocking-read").map_err(trap)?;
        wait(&self.wait, plain::streams::HostInputStream::blocking_read(&mut self.table, stream, len)).map_err(trap)?
    }

    fn skip(&mut self, stream: Input, len: u64) -> StreamResult<u64> {
        self.host_call("wasi:io/streams#skip").map_err(trap)?;
        plain::streams::HostInputStream::skip(&mut self.table, stream, len)
    }

    fn blocking_skip(&mut self, stream: Input, len: u64) -> StreamResult<u64> {
        self.host_call("wasi:io/streams#blocking-skip").map_err(trap)?;
        wait(&self.wait, plain::streams::HostInputStream::blocking_skip(&mut self.table, stream, len)).map_err(trap)?
    }

    fn subscribe(&mut self, stream: Input) -> wasmtime::Result<Resource<DynPollable>> {
        self.host_call("wasi:io/streams#subscribe")?;
        plain::streams::HostInputStream::subscribe(&mut self.table, stream)
    }

    fn drop(&mut self, stream: Input) -> wasmtime::Result<()> {
        self.host_call("wasi:io/streams#drop")?;
        wait(&self.wait, plain::streams::HostInputStream::drop(&mut self.table, stream))?
    }
}

impl clocks::wall_clock::Host for State {
    fn now(&mut self) -> wasmtime::Result<clocks::wall_clock::Datetime> {
        self.host_call("wasi:clocks/wall-clock#now")?;
        let ms = self.wait.time.wall_ms();
        let nanoseconds = u32::try_from(ms % 1_000).unwrap_or_default() * 1_000_000;
        Ok(clocks::wall_clock::Datetime { seconds: ms / 1_000, nanoseconds })
    }

    fn resolution(&mut self) -> wasmtime::Result<clocks::wall_clock::Datetime> {
        self.host_call("wasi:clocks/wall-clock#resolution")?;
        Ok(clocks::wall_clock::Datetime { seconds: 0, nanoseconds: 1_000_000 })
    }
}

impl State {
    fn alarm(&mut self, at_ns: u64) -> wasmtime::Result<Resource<DynPollable>> {
        let alarm = self.table.push(Alarm { at_ns, time: Arc::clone(&self.wait.time) })?;
        subscribe(&mut self.table, alarm)
    }
}

impl clocks::monotonic_clock::Host for State {
    fn now(&mut self) -> wasmtime::Result<u64> {
        self.host_call("wasi:clocks/monotonic-clock#now")?;
        Ok(self.wait.time.monotonic_ns())
    }

    fn resolution(&mut self) -> wasmtime::Result<u64> {
        self.host_call("wasi:clocks/monotonic-clock#resolution")?;
        Ok(RESOLUTION_NS)
    }

    fn subscribe_instant(&mut self, when: u64) -> wasmtime::Result<Resource<DynPollable>> {
        self.host_call("wasi:clocks/monotonic-clock#subscribe-instant")?;
        self.alarm(when)
    }

    fn subscribe_duration(&mut self, duration: u64) -> wasmtime::Result<Resource<DynPollable>> {
        self.host_call("wasi:clocks/monotonic-clock#subscribe-duration")?;
        self.alarm(self.wait.time.now_ns().saturating_add(duration))
    }
}

impl random::random::Host for State {
    fn get_random_bytes(&mut self, len: u64) -> wasmtime::Result<Vec<u8>> {
        self.host_call("wasi:random/random#get-random-bytes")?;
        Ok(self.random().bytes(len)?)
    }

    fn get_random_u64(&mut self) -> wasmtime::Result<u64> {
        self.host_call("wasi:random/random#get-random-u64")?;
        Ok(self.random().number()?)
    }
}

impl random::insecure::Host for State {
    fn get_insecure_random_bytes(&mut self, len: u64) -> wasmtime::Result<Vec<u8>> {
        self.host_call("wasi:random/insecure#get-insecure-random-bytes")?;
        Ok(self.random().bytes(len)?)
    }

    fn get_insecure_random_u64(&mut self) -> wasmtime::Result<u64> {
        self.host_call("wasi:random/insecure#get-insecure-random-u64")?;
        Ok(self.random().number()?)
    }
}

impl random::insecure_seed::Host for State {
    fn insecure_seed(&mut self) -> wasmtime::Result<(u64, u64)> {
        self.host_call("wasi:random/insecure-seed#insecure-seed")?;
        Ok((self.random().number()?, self.random().number()?))
    }
}

impl cli::environment::Host for State {
    fn get_environment(&mut self) -> wasmtime::Result<Vec<(String, String)>> {
        self.host_call("wasi:cli/environment#get-environment")?;
        if self.command.is_none() {
            return Ok(Vec::new());
        }
        Ok(self.spec.config.iter().map(|(key, value)| (key.clone(), value.clone())).collect())
    }

    fn get_arguments(&mut self) -> wasmtime::Result<Vec<String>> {
        self.host_call("wasi:cli/environment#get-arguments")?;
        // A program takes its own name for granted.
        Ok(if self.command.is_some() { vec![self.spec.name.clone()] } else { Vec::new() })
    }

    fn initial_cwd(&mut self) -> wasmtime::Result<Option<String>> {
        self.host_call("wasi:cli/environment#initial-cwd")?;
        Ok(None)
    }
}

impl cli::exit::Host for State {
    fn exit(&mut self, status: Result<(), ()>) -> wasmtime::Result<()> {
        Err(Stop::Exit(i32::from(status.is_err())).into())
    }

    fn exit_with_code(&mut self, code: u8) -> wasmtime::Result<()> {
        Err(Stop::Exit(i32::from(code)).into())
    }
}

impl cli::stdin::Host for State {
    fn get_stdin(&mut self) -> wasmtime::Result<Input> {
        self.host_call("wasi:cli/stdin#get-stdin")?;
        let stream: DynInputStream = match &mut self.command {
            // The bytes are handed over: a program has one standard input, and reads it once.
            Some(command) => Box::new(MemoryInputPipe::new(std::mem::take(&mut command.stdin))),
            None => Box::new(ClosedInputStream),
        };
        Ok(self.table.push(stream)?)
    }
}

impl cli::stdout::Host for State {
    fn get_stdout(&mut self) -> wasmtime::Result<Output> {
        self.host_call("wasi:cli/stdout#get-stdout")?;
        let stream: DynOutputStream = Box::new(self.stream(Channel::Stdout));
        Ok(self.table.push(stream)?)
    }
}

impl cli::stderr::Host for State {
    fn get_stderr(&mut self) -> wasmtime::Result<Output> {
        self.host_call("wasi:cli/stderr#get-stderr")?;
        let stream: DynOutputStream = Box::new(self.stream(Channel::Stderr));
        Ok(self.table.push(stream)?)
    }
}

impl filesystem::preopens::Host for State {
    fn get_directories(&mut self) -> wasmtime::Result<Vec<(Resource<wasmtime_wasi::filesystem::Descriptor>, String)>> {
        self.host_call("wasi:filesystem/preopens#get-directories")?;
        Ok(Vec::new())
    }
}

#[derive(Clone, Copy)]
pub(crate) enum Channel {
    Stdout,
    Stderr,
}

/// One of the two output streams, as a handle that a guest holds.
#[derive(Clone)]
pub(crate) struct ConsoleStream {
    console: Arc<Mutex<Console>>,
    channel: Channel,
}

impl State {
    pub(crate) fn stream(&mut self, channel: Channel) -> ConsoleStream {
        ConsoleStream { console: Arc::clone(self.console_shared()), channel }
    }
}

impl OutputStream for ConsoleStream {
    fn write(&mut self, bytes: Bytes) -> StreamResult<()> {
        // More than was permitted is a trap by WASI's own words, and what stands behind a write takes time that no deadline ends.
        if bytes.len() > WRITE_BYTES_MAX {
            let text = format!(
                "a write to a stream of {} bytes, more than check-write permits ({WRITE_BYTES_MAX})",
                bytes.len()
            );
            return Err(StreamError::trap(&text));
        }
        let mut console = self.console.lock().unwrap_or_else(PoisonError::into_inner);
        match self.channel {
            Channel::Stdout => console.stdout(&bytes).map_err(trap),
            Channel::Stderr => {
                console.stderr(&bytes);
                Ok(())
            }
        }
    }

    fn flush(&mut self) -> StreamResult<()> {
        Ok(())
    }

    fn check_write(&mut self) -> StreamResult<usize> {
        Ok(WRITE_BYTES_MAX)
    }
}

#[async_trait]
impl Pollable for ConsoleStream {
    async fn ready(&mut self) {}
}

impl IsTerminal for ConsoleStream {
    fn is_terminal(&self) -> bool {
        false
    }
}

impl StdoutStream for ConsoleStream {
    /// Only WASI 0.3 asks for this one, which is not linked.
    fn async_stream(&self) -> Box<dyn AsyncWrite + Send + Sync> {
        Box::new(tokio::io::sink())
    }

    fn p2_stream(&self) -> Box<dyn OutputStream> {
        Box::new(self.clone())
    }
}

/// The clocks of a delivery, in the shape that preview 1 wants.
pub(crate) struct Clock(pub(crate) Arc<VirtualTime>);

impl HostWallClock for Clock {
    fn resolution(&self) -> Duration {
        Duration::from_millis(1)
    }

    fn now(&self) -> Duration {
        Duration::from_millis(self.0.wall_ms())
    }
}

impl HostMonotonicClock for Clock {
    fn resolution(&self) -> u64 {
        RESOLUTION_NS
    }

    fn now(&self) -> u64 {
        self.0.monotonic_ns()
    }
}
