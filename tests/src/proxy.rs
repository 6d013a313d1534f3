//! A bad network: a proxy between hosts and a real Redis, whose behaviour is changed while it runs.
//!
//! ```text
//!  hosts ── TCP ──▶ requests, one by one ──▶ unix socket ──▶ redis
//!        ◀── TCP ── replies, in the order of the requests ◀──
//! ```
//!
//! It reads just enough of the protocol to know where a request or a reply ends, which command it is, and which reply
//! belongs to which request: so exactly the reply of a settle can be lost, or a chosen command be answered with an error
//! that a real server cannot be brought to give. Threads of the standard library only: nothing of what is tested.

use std::collections::VecDeque;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use crate::Redis;

/// How the network behaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Behaviour {
    /// As it should.
    Pass,
    /// Every connection is closed, and so is every new one.
    Cut,
    /// Connections stand and are accepted, and nothing comes through either way. When it ends, connections that have
    /// swallowed something are reset, as by a machine that has been started anew and knows nothing of them.
    BlackHole,
    /// The same, and connections that have swallowed something stay silent for good, as behind a firewall that has
    /// forgotten them: only their client can give them up.
    HalfOpen,
    /// Every reply comes this long after its request, or later.
    Late(Duration),
    /// One byte a second, either way. What was on its way when this ends arrives then, wanted or not.
    Trickle,
    /// Requests are carried out, and their connection is reset in place of the reply.
    ResetInPlaceOfReplies,
    /// Every second settle is carried out and its connection reset in place of the reply; everything else passes. Not
    /// every one, because then none would be known to have been taken, and few would be sent.
    LoseSettleReplies,
    /// Requests of the connections that are open now are kept back, and arrive when this ends, whether or not the host still
    /// waits; replies and new connections pass.
    KeepBack,
    /// These commands are not carried out but answered with an error, which is its code and its words.
    Refuse(Commands, &'static str, &'static str),
}

/// Some commands of a host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Commands {
    /// Reads of new entries.
    Reads,
    /// Calls of scripts.
    Scripts,
    /// Calls of the script that carries out commits and dead letters.
    Settles,
    /// Everything that a host sends after it has connected.
    All,
}

/// What went through since the behaviour was last changed.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    /// Settles that were asked for.
    pub settles: u64,
    /// Settles that were carried out and whose reply was lost.
    pub settle_replies_lost: u64,
    /// Replies of any command that were lost with their connection.
    pub replies_lost: u64,
    /// Commands that were answered with an error of ours.
    pub refused: u64,
    /// When the first of them was.
    pub first_refusal: Option<Instant>,
    /// When replies went to a host that brought it new entries.
    pub reads_with_entries: Vec<Instant>,
    /// Connections that were accepted.
    pub connections: u64,
}

/// A proxy before a Redis.
pub struct Proxy {
    shared: Arc<Shared>,
    port: u16,
}

struct Shared {
    redis: PathBuf,
    behaviour: Mutex<Behaviour>,
    seen: Mutex<Seen>,
    open: Mutex<Vec<Weak<Connection>>>,
    ended: AtomicBool,
}

/// One host's connection. Two threads share it: one for each direction.
struct Connection {
    host: TcpStream,
    redis: UnixStream,
    /// Requests whose reply has not gone to the host, in order.
    asked: Mutex<VecDeque<Asked>>,
    /// Something of it has been swallowed: nothing that comes after would make sense to its reader.
    silent: AtomicBool,
    /// It was there when requests began to be kept back.
    kept_back: AtomicBool,
    /// It is to end with a reset, not with a farewell.
    reset: AtomicBool,
}

struct Asked {
    at: Instant,
    kind: Kind,
    fate: Fate,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Setup,
    Read,
    Settle,
    OtherScript,
    Other,
}

enum Fate {
    Relay,
    Lose,
    /// Redis has not been asked.
    Answer(String),
}

impl Proxy {
    /// Starts one before a Redis.
    pub fn before(redis: &Redis) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port of the loopback is free");
        let port = listener.local_addr().expect("it is bound").port();
        let shared = Arc::new(Shared {
            redis: redis.socket(),
            behaviour: Mutex::new(Behaviour::Pass),
            seen: Mutex::default(),
            open: Mutex::default(),
            ended: AtomicBool::new(false),
        });
        let accepting = shared.clone();
        std::thread::spawn(move || {
            for host in listener.incoming() {
                if accepting.ended.load(Ordering::SeqCst) {
                    return;
                }
                // A host that is gone again, or a Redis that is: either way it is told by the closed connection.
                let _ = host.and_then(|host| accepting.accept(host));
            }
        });
        Proxy { shared, port }
    }

    /// Where hosts connect.
    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    /// Changes the behaviour, of open connections too, and begins to count anew.
    pub fn set(&self, behaviour: Behaviour) {
        let before = std::mem::replace(&mut *locked(&self.shared.behaviour), behaviour);
        *locked(&self.shared.seen) = Seen::default();
        if behaviour == Behaviour::Cut {
            self.shared.close(|_| true);
        }
        if behaviour == Behaviour::KeepBack {
            let open = locked(&self.shared.open);
            open.iter().filter_map(Weak::upgrade).for_each(|one| one.kept_back.store(true, Ordering::SeqCst));
        }
        if before == Behaviour::BlackHole {
            self.shared.close(|connection| connection.silent.load(Ordering::SeqCst) && connection.reset().is_err());
        }
    }

    /// What went through since the last change.
    pub fn seen(&self) -> Seen {
        locked(&self.shared.seen).clone()
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.shared.ended.store(true, Ordering::SeqCst);
        // Wakes the thread that accepts.
        let _ = TcpStream::connect((Ipv4Addr::LOCALHOST, self.port));
        self.shared.close(|_| true);
    }
}

impl Shared {
    fn behaviour(&self) -> Behaviour {
        *locked(&self.behaviour)
    }

    fn accept(self: &Arc<Self>, host: TcpStream) -> io::Result<()> {
        if self.behaviour() == Behaviour::Cut {
            return Ok(());
        }
        host.set_nodelay(true)?;
        let redis = UnixStream::connect(&self.redis)?;
        let connection = Arc::new(Connection {
            host,
            redis,
            asked: Mutex::default(),
            silent: AtomicBool::default(),
            kept_back: AtomicBool::default(),
            reset: AtomicBool::default(),
        });
        let mut open = locked(&self.open);
        open.retain(|connection| connection.strong_count() > 0);
        open.push(Arc::downgrade(&connection));
        drop(open);
        locked(&self.seen).connections += 1;
        let directions: [fn(&Shared, &Connection) -> io::Result<()>; 2] = [Shared::requests, Shared::replies];
        for direction in directions {
            let (shared, connection) = (self.clone(), connection.clone());
            std::thread::spawn(move || {
                // However one direction ends, the other ends with it.
                let _ = direction(&shared, &connection);
                connection.end();
            });
        }
        Ok(())
    }

    fn close(&self, wanted: fn(&Connection) -> bool) {
        let open = locked(&self.open);
        open.iter().filter_map(Weak::upgrade).filter(|one| wanted(one)).for_each(|one| one.end());
    }

    fn requests(&self, connection: &Connection) -> io::Result<()> {
        let mut from = BufReader::new(&connection.host);
        loop {
            let mut request = Vec::new();
            read_value(&mut from, &mut request)?;
            let kind = kind(&words(&request));
            let behaviour = self.behaviour();
            if matches!(behaviour, Behaviour::BlackHole | Behaviour::HalfOpen) {
                connection.silent.store(true, Ordering::SeqCst);
            }
            if connection.silent.load(Ordering::SeqCst) {
                continue;
            }
            while connection.kept_back.load(Ordering::SeqCst) && self.behaviour() == Behaviour::KeepBack {
                std::thread::sleep(Duration::from_millis(10));
            }
            let mut asked = locked(&connection.asked);
            asked.push_back(Asked { at: Instant::now(), kind, fate: self.fate(behaviour, kind) });
            if matches!(asked.back(), Some(Asked { fate: Fate::Answer(_), .. })) {
                connection.answer(&mut asked)?;
                continue;
            }
            drop(asked);
            self.pass_on(&request, &mut &connection.redis)?;
        }
    }

    fn fate(&self, behaviour: Behaviour, kind: Kind) -> Fate {
        let mut seen = locked(&self.seen);
        seen.settles += u64::from(kind == Kind::Settle);
        match behaviour {
            Behaviour::ResetInPlaceOfReplies if kind != Kind::Setup => Fate::Lose,
            Behaviour::LoseSettleReplies if kind == Kind::Settle => {
                if seen.settles % 2 == 1 {
                    Fate::Lose
                } else {
                    Fate::Relay
                }
            }
            Behaviour::Refuse(commands, code, words) if commands.include(kind) => {
                seen.refused += 1;
                seen.first_refusal.get_or_insert_with(Instant::now);
                Fate::Answer(format!("-{code} {words}\r\n"))
            }
            _ => Fate::Relay,
        }
    }

    fn replies(&self, connection: &Connection) -> io::Result<()> {
        let mut from = BufReader::new(&connection.redis);
        loop {
            let mut reply = Vec::new();
            read_value(&mut from, &mut reply)?;
            // The request was noted before it was sent, and goes from the list when its reply has been written.
            let (at, kind, lost) = match locked(&connection.asked).front() {
                Some(asked) => (asked.at, asked.kind, matches!(asked.fate, Fate::Lose)),
                None => return Err(io::Error::other("a reply to nothing")),
            };
            if lost {
                let mut seen = locked(&self.seen);
                seen.replies_lost += 1;
                seen.settle_replies_lost += u64::from(kind == Kind::Settle);
                return connection.reset();
            }
            match self.behaviour() {
                Behaviour::BlackHole | Behaviour::HalfOpen => connection.silent.store(true, Ordering::SeqCst),
                Behaviour::Late(by) => std::thread::sleep((at + by).saturating_duration_since(Instant::now())),
                _ => {}
            }
            if connection.silent.load(Ordering::SeqCst) {
                continue;
            }
            self.pass_on(&reply, &mut &connection.host)?;
            if kind == Kind::Read && !matches!(reply.get(..2), Some(b"*-" | b"*0" | b"$-") | None) && reply[0] != b'-' {
                locked(&self.seen).reads_with_entries.push(Instant::now());
            }
            let mut asked = locked(&connection.asked);
            asked.pop_front();
            connection.answer(&mut asked)?;
        }
    }

    /// Writes at once, or as slowly as the network is for as long as it is slow.
    fn pass_on(&self, mut bytes: &[u8], to: &mut impl Write) -> io::Result<()> {
        while let [byte, rest @ ..] = bytes
            && self.behaviour() == Behaviour::Trickle
        {
            to.write_all(&[*byte])?;
            bytes = rest;
            let next = Instant::now() + Duration::from_secs(1);
            while Instant::now() < next && self.behaviour() == Behaviour::Trickle {
                std::thread::sleep(Duration::from_millis(10));
            }
        }
        to.write_all(bytes)
    }
}

impl Connection {
    /// Writes the answers of our own that stand at the front of the list: those that no reply of Redis has to go before.
    fn answer(&self, asked: &mut MutexGuard<'_, VecDeque<Asked>>) -> io::Result<()> {
        while let Some(Asked { fate: Fate::Answer(text), .. }) = asked.front() {
            (&self.host).write_all(text.as_bytes())?;
            asked.pop_front();
        }
        Ok(())
    }

    /// Wakes both threads, and says farewell to both sides.
    fn end(&self) {
        // The end of reading is not told to the host.
        let farewell = if self.reset.load(Ordering::SeqCst) { Shutdown::Read } else { Shutdown::Both };
        let _ = self.host.shutdown(farewell);
        let _ = self.redis.shutdown(Shutdown::Both);
    }

    /// Makes its end a reset, which is the error that this gives: that is sent when the socket is closed, which is when both threads have let go of it.
    fn reset(&self) -> io::Result<()> {
        socket2::SockRef::from(&self.host).set_linger(Some(Duration::ZERO))?;
        self.reset.store(true, Ordering::SeqCst);
        Err(io::ErrorKind::ConnectionReset.into())
    }
}

impl Commands {
    fn include(self, kind: Kind) -> bool {
        match self {
            Commands::Reads => kind == Kind::Read,
            Commands::Scripts => matches!(kind, Kind::Settle | Kind::OtherScript),
            Commands::Settles => kind == Kind::Settle,
            Commands::All => kind != Kind::Setup,
        }
    }
}

fn kind(words: &[&[u8]]) -> Kind {
    let ledger = |word: &&[u8]| word.starts_with(b"cofferdam:ledger:");
    match words {
        [b"CLIENT" | b"HELLO" | b"AUTH" | b"SELECT", ..] => Kind::Setup,
        [b"XREADGROUP", ..] => Kind::Read,
        // A settle names stream, ledger, park hash, dead letters and its outputs; taking over names the redrive stream there.
        [b"EVALSHA", _, _, _, second, _, b"stream:dead_letter", next, ..]
            if ledger(second) && !next.starts_with(b"cofferdam:redrive:") =>
        {
            Kind::Settle
        }
        [b"EVALSHA", ..] => Kind::OtherScript,
        _ => Kind::Other,
    }
}

/// Appends one value of the protocol, with all that it contains, to `raw`.
fn read_value(from: &mut impl BufRead, raw: &mut Vec<u8>) -> io::Result<()> {
    // Values that are still to be read: an array adds its members.
    let mut left = 1u64;
    while left > 0 {
        left -= 1;
        let begin = raw.len();
        if from.read_until(b'\n', raw)? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let line = raw.get(begin..).unwrap_or_default();
        let size = || std::str::from_utf8(line.get(1..)?).ok()?.trim().parse::<i64>().ok();
        match (line.first(), size()) {
            (Some(b'*'), Some(members)) => left += u64::try_from(members).unwrap_or(0),
            (Some(b'$'), Some(bytes)) if bytes >= 0 => {
                let bytes = u64::try_from(bytes).unwrap_or(0) + 2;
                if from.take(bytes).read_to_end(raw)? as u64 != bytes {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
            }
            (Some(b'$' | b':' | b'+' | b'-'), _) => {}
            _ => return Err(io::Error::other("neither a request nor a reply of version 2 of the protocol")),
        }
    }
    Ok(())
}

/// The words of a request.
fn words(request: &[u8]) -> Vec<&[u8]> {
    let mut words = Vec::new();
    let mut rest = request;
    while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
        let (line, after) = rest.split_at(end + 1);
        rest = after;
        if line.first() == Some(&b'$') {
            let size = std::str::from_utf8(&line[1..]).ok().and_then(|size| size.trim().parse::<usize>().ok());
            let (word, after) = rest.split_at(size.unwrap_or(0).min(rest.len()));
            words.push(word);
            rest = after.get(2..).unwrap_or_default();
        }
    }
    words
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
