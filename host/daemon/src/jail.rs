//! The jail of a child process that touches hostile bytes: what it does to itself before it reads the first of them, and how
//! its parent starts it, talks to it and ends it.
//!
//! ```text
//!  parent ── Jailed::spawn("verb") ─▶ this program again: no environment, cwd /, two pipes
//!    │                                  │ makes what needs the machine (the engine)
//!    │                                  │ enter(): rlimits, then a list of the system calls that are left
//!    └── write ─────── frames ────────▶ │ reads and works
//!    ◀── read, with a wall clock ────── │
//! ```
//!
//! The filter is a list of what is allowed: memory, threads of its own, waiting, and the pipes it already has. Opening a file, a
//! socket, a process, a namespace or another process's memory is not on it, so that nothing but the two pipes leads out. Landlock
//! and namespaces would forbid less than that, and not on every kernel.

use std::collections::BTreeMap;
use std::io::{self, Read};
use std::os::fd::AsFd;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, ChildStdin, ChildStdout, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::process::{Resource, Rlimit, setrlimit};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
    apply_filter_all_threads,
};

use crate::frames::{read_frame, write_frame};

/// Open files: the pipes, standard error, what the engine opened, and anonymous memory files of code images.
const FILES_MAX: u64 = 64;
/// `PAGEMAP_SCAN` of linux/fs.h: how the engine learns which pages of a slot are dirty.
const PAGEMAP_SCAN: u64 = 0xc060_6610;

/// What the child may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Bounds {
    /// Memory that can be written to, in bytes (`RLIMIT_DATA`). Address space is not bounded: the engine reserves far more of it
    /// than it uses.
    pub(crate) memory_bytes: u64,
    /// Processor time over its whole life; `None` where the parent bounds each answer instead.
    pub(crate) cpu: Option<Duration>,
}

/// Locks this process in, for good. Gives back what the kernel did not allow, for somebody to see: no note, full jail.
///
/// Threads that exist are locked in too. Files that are open stay open, so the caller opens what it needs before.
pub(crate) fn enter(bounds: &Bounds) -> Vec<String> {
    let mut notes = Vec::new();
    let mut limit = |name: &str, resource: Resource, soft: u64, hard: u64| {
        let wanted = Rlimit { current: Some(soft), maximum: Some(hard) };
        if let Err(error) = setrlimit(resource, wanted) {
            notes.push(format!("the child's limit on {name} is not in force: {error}"));
        }
    };
    limit("memory", Resource::Data, bounds.memory_bytes, bounds.memory_bytes);
    // Anonymous memory files are files to this limit; no other can be opened.
    limit("file sizes", Resource::Fsize, bounds.memory_bytes, bounds.memory_bytes);
    limit("core dumps", Resource::Core, 0, 0);
    limit("open files", Resource::Nofile, FILES_MAX, FILES_MAX);
    if let Some(cpu) = bounds.cpu {
        let seconds = cpu.as_secs().max(1);
        // The first ends it with a signal of its own, which the parent can name; the second is for whoever ignores that.
        limit("processor time", Resource::Cpu, seconds, seconds + 1);
    }
    if let Err(error) = filter() {
        notes.push(format!(
            "the child has no filter on system calls ({error}): only its memory and its time are bounded, not what it reaches"
        ));
    }
    notes
}

/// Leaves only the system calls of the list. `no_new_privs` comes with it.
fn filter() -> Result<(), Box<dyn std::error::Error>> {
    let arch = std::env::consts::ARCH.try_into()?;
    // glibc starts threads by clone3, whose flags no filter can read; told that there is none it takes clone.
    let no_clone3 = SeccompFilter::new(
        BTreeMap::from([(libc::SYS_clone3, Vec::new())]),
        SeccompAction::Allow,
        SeccompAction::Errno(u32::try_from(libc::ENOSYS)?),
        arch,
    )?;
    let mut allowed: BTreeMap<i64, Vec<SeccompRule>> = CALLS.iter().map(|&call| (call, Vec::new())).collect();
    let thread = libc::CLONE_THREAD as u64;
    let me = u64::from(std::process::id());
    for (call, argument, operator, value) in [
        // A thread and no process.
        (libc::SYS_clone, 0, SeccompCmpOp::MaskedEq(thread), thread),
        // Its name and nothing else of it.
        (libc::SYS_prctl, 0, SeccompCmpOp::Eq, libc::PR_SET_NAME as u64),
        // Nothing of terminals: standard error may be one.
        (libc::SYS_ioctl, 1, SeccompCmpOp::Eq, PAGEMAP_SCAN),
        // Reading a limit and not setting one.
        (libc::SYS_prlimit64, 2, SeccompCmpOp::Eq, 0),
        // An abort is a signal to oneself.
        (libc::SYS_tgkill, 0, SeccompCmpOp::Eq, me),
    ] {
        let condition = SeccompCondition::new(argument, SeccompCmpArgLen::Qword, operator, value)?;
        allowed.insert(call, vec![SeccompRule::new(vec![condition])?]);
    }
    let only =
        SeccompFilter::new(allowed, SeccompAction::Errno(u32::try_from(libc::EPERM)?), SeccompAction::Allow, arch)?;
    for filter in [no_clone3, only] {
        apply_filter_all_threads(&BpfProgram::try_from(filter)?)?;
    }
    Ok(())
}

/// What is allowed whatever its arguments.
const CALLS: &[i64] = &[
    // memory
    libc::SYS_brk,
    libc::SYS_mmap,
    libc::SYS_munmap,
    libc::SYS_mremap,
    libc::SYS_mprotect,
    libc::SYS_madvise,
    libc::SYS_membarrier,
    libc::SYS_memfd_create,
    libc::SYS_ftruncate,
    // files that are open
    libc::SYS_read,
    libc::SYS_readv,
    libc::SYS_pread64,
    libc::SYS_write,
    libc::SYS_writev,
    libc::SYS_pwrite64,
    libc::SYS_lseek,
    libc::SYS_close,
    libc::SYS_fstat,
    libc::SYS_fcntl,
    // waiting
    libc::SYS_futex,
    libc::SYS_ppoll,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_pwait,
    libc::SYS_nanosleep,
    libc::SYS_clock_nanosleep,
    libc::SYS_sched_yield,
    libc::SYS_restart_syscall,
    // time, randomness and the machine
    libc::SYS_clock_gettime,
    libc::SYS_clock_getres,
    libc::SYS_gettimeofday,
    libc::SYS_getrandom,
    libc::SYS_sched_getaffinity,
    libc::SYS_getcpu,
    libc::SYS_sysinfo,
    libc::SYS_uname,
    // threads and signals of its own
    libc::SYS_clone3,
    libc::SYS_set_robust_list,
    libc::SYS_rseq,
    libc::SYS_getpid,
    libc::SYS_gettid,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sigaltstack,
    libc::SYS_exit,
    libc::SYS_exit_group,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_poll,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_epoll_wait,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_arch_prctl,
];

/// A child in its jail, seen from outside. Dropping it ends it.
pub(crate) struct Jailed {
    child: Child,
    stdin: ChildStdin,
    stdout: ChildStdout,
}

impl Drop for Jailed {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Jailed {
    /// Starts this program again with a hidden verb, which calls [`enter`] with the bounds that stand in its arguments.
    ///
    /// # Errors
    /// When no process can be started.
    pub(crate) fn spawn(verb: &str, bounds: &Bounds) -> io::Result<Jailed> {
        // The very file that runs, even when an upgrade has put another in its place.
        let mut command = Command::new("/proc/self/exe");
        command.arg(verb).arg(format!("--memory-bytes={}", bounds.memory_bytes));
        if let Some(cpu) = bounds.cpu {
            command.arg(format!("--cpu-seconds={}", cpu.as_secs().max(1)));
        }
        Jailed::start(command)
    }

    fn start(mut command: Command) -> io::Result<Jailed> {
        // A group of its own: Ctrl-C is for the parent, which lets the child finish what it runs.
        let mut child = command
            .process_group(0)
            .env_clear()
            .current_dir("/")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        match (child.stdin.take(), child.stdout.take()) {
            (Some(stdin), Some(stdout)) => Ok(Jailed { child, stdin, stdout }),
            _ => Err(io::ErrorKind::BrokenPipe.into()),
        }
    }

    /// Sends a frame. The child reads before it works, so this waits for no work of its.
    ///
    /// # Errors
    /// The pipe's: the child has ended.
    pub(crate) fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        write_frame(&mut self.stdin, bytes)
    }

    /// Waits for a whole frame, no longer than `patience`.
    ///
    /// # Errors
    /// [`io::ErrorKind::TimedOut`]; the end of its output, when it has ended.
    pub(crate) fn read(&mut self, patience: Duration) -> io::Result<Vec<u8>> {
        let mut timed = Timed { from: &mut self.stdout, ends: Instant::now() + patience, patience };
        read_frame(&mut timed)?.ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
    }

    /// Whether it has not ended yet.
    pub(crate) fn lives(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// How it ended, after [`read`](Self::read) or [`write`](Self::write) failed with this; `None` when it did not end by itself.
    pub(crate) fn ended(&mut self, error: &io::Error) -> Option<ExitStatus> {
        if !matches!(error.kind(), io::ErrorKind::UnexpectedEof | io::ErrorKind::BrokenPipe) {
            return None;
        }
        // Its pipe is closed. One that dies has its status by then, which a signal does not change any more; one that closed the pipe
        // and lives on would be waited for in vain.
        let _ = self.child.kill();
        self.child.wait().ok()
    }

    /// The same, in words.
    pub(crate) fn last_words(&mut self, error: &io::Error) -> String {
        self.ended(error).map_or_else(|| error.to_string(), |status| status.to_string())
    }
}

/// Whether a signal ended it that people and service managers send, and that nothing sends which runs in a jail.
pub(crate) fn was_told_to_end(status: ExitStatus) -> bool {
    matches!(status.signal(), Some(libc::SIGINT | libc::SIGTERM | libc::SIGHUP | libc::SIGQUIT))
}

/// A pipe that is read until a time and no longer.
struct Timed<'a> {
    from: &'a mut ChildStdout,
    ends: Instant,
    patience: Duration,
}

impl Read for Timed<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = self.ends.saturating_duration_since(Instant::now());
        let timeout =
            Timespec { tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX), tv_nsec: left.subsec_nanos().into() };
        let mut pipes = [PollFd::from_borrowed_fd(self.from.as_fd(), PollFlags::IN)];
        if rustix::event::poll(&mut pipes, Some(&timeout))? == 0 {
            return Err(io::Error::new(io::ErrorKind::TimedOut, format!("no answer within {:?}", self.patience)));
        }
        self.from.read(buffer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOUNDS: Bounds = Bounds { memory_bytes: 256 << 20, cpu: Some(Duration::from_secs(10)) };

    /// Runs one of the tests below in a process of its own and gives back what it printed.
    fn inside(name: &str) -> (bool, String) {
        let program = std::env::current_exe().unwrap();
        let arguments = ["--exact", name, "--ignored", "--nocapture", "--test-threads=1"];
        let output = Command::new(program).args(arguments).output().unwrap();
        (
            output.status.success(),
            format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr)),
        )
    }

    fn alone() -> bool {
        std::env::args().any(|argument| argument == "--exact")
    }

    #[test]
    fn nothing_but_the_pipes_leads_out() {
        let (ended_well, text) = inside("jail::tests::tries_to_get_out");
        assert!(ended_well && text.contains("1 passed"), "{text}");
    }

    #[test]
    #[ignore = "it locks its process in: its sibling runs it in one of its own"]
    fn tries_to_get_out() {
        if !alone() {
            return;
        }
        let before = std::fs::read("/proc/self/status").unwrap();
        assert_eq!(enter(&BOUNDS), Vec::<String>::new());
        let refused = |what: &str, result: io::Result<()>| {
            let error = result.expect_err(what);
            assert_eq!(error.kind(), io::ErrorKind::PermissionDenied, "{what}: {error}");
        };
        refused("a file", std::fs::read("/etc/passwd").map(drop));
        refused("a new file", std::fs::write("/tmp/cofferdam-got-out", "x"));
        refused("a folder", std::fs::read_dir("/").map(drop));
        refused("a connection", std::net::TcpStream::connect("127.0.0.1:1").map(drop));
        refused("a socket", std::net::UdpSocket::bind("127.0.0.1:0").map(drop));
        refused("a local socket", std::os::unix::net::UnixStream::pair().map(drop));
        refused("a program", Command::new("/bin/true").stdin(Stdio::inherit()).status().map(drop));
        let parent = rustix::process::getppid();
        assert!(parent.is_none_or(|parent| rustix::process::test_kill_process(parent).is_err()), "a signal");
        assert!(setrlimit(Resource::Data, Rlimit { current: None, maximum: None }).is_err(), "more memory");
        // And what it needs is there: threads, memory, the pipes.
        let sum = std::thread::spawn(move || before.iter().map(|&byte| u64::from(byte)).sum::<u64>()).join().unwrap();
        assert!(sum > 0);
    }

    #[test]
    fn memory_and_time_are_bounded() {
        let (ended_well, text) = inside("jail::tests::takes_too_much_memory");
        assert!(!ended_well && text.contains("memory allocation of"), "{text}");
        let (ended_well, text) = inside("jail::tests::takes_too_much_time");
        assert!(!ended_well && !text.contains("1 passed"), "{text}");
    }

    #[test]
    #[ignore = "it dies of it: its sibling runs it in a process of its own"]
    fn takes_too_much_memory() {
        if alone() {
            enter(&BOUNDS);
            let taken: Vec<Vec<u8>> = (0..300).map(|_| vec![1; 1 << 20]).collect();
            assert_eq!(taken.len(), 0, "all of it was given");
        }
    }

    #[test]
    #[ignore = "it dies of it: its sibling runs it in a process of its own"]
    fn takes_too_much_time() {
        if alone() {
            enter(&Bounds { cpu: Some(Duration::from_secs(1)), ..BOUNDS });
            let mut count = 0u64;
            while count < u64::MAX {
                count = std::hint::black_box(count + 1);
            }
        }
    }

    #[test]
    fn an_answer_that_does_not_come_is_not_waited_for() {
        let mut command = Command::new("/bin/sh");
        // A frame that begins and does not end.
        command.args(["-c", "printf '\\005\\000\\000\\000ab'; read nothing"]);
        let mut child = Jailed::start(command).unwrap();
        let error = child.read(Duration::from_millis(100)).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    }

    #[test]
    fn one_that_closes_its_pipe_and_lives_on_is_not_waited_for() {
        let mut command = Command::new("/bin/sh");
        command.args(["-c", "exec >&-; exec sleep 600"]);
        let mut child = Jailed::start(command).unwrap();
        let error = child.read(Duration::from_secs(60)).unwrap_err();
        assert_eq!(child.ended(&error).and_then(|status| status.signal()), Some(libc::SIGKILL));
        assert!(!child.lives());
    }

    #[test]
    fn an_answer_that_is_too_large_is_not_waited_for_either() {
        let mut command = Command::new("/bin/sh");
        command.args(["-c", "printf '\\377\\377\\377\\377'; exec sleep 600"]);
        let mut child = Jailed::start(command).unwrap();
        let error = child.read(Duration::from_secs(60)).unwrap_err();
        assert_eq!(child.last_words(&error), io::Error::from(io::ErrorKind::FileTooLarge).to_string());
    }

    #[test]
    fn its_status_is_its_own_and_who_ended_it_is_told_apart() {
        for (script, signal, told) in [("kill -TERM $$", libc::SIGTERM, true), ("kill -ABRT $$", libc::SIGABRT, false)]
        {
            let mut command = Command::new("/bin/sh");
            command.args(["-c", script]);
            let mut child = Jailed::start(command).unwrap();
            let error = child.read(Duration::from_secs(60)).unwrap_err();
            let status = child.ended(&error).unwrap();
            assert_eq!((status.signal(), was_told_to_end(status)), (Some(signal), told));
        }
    }
}
