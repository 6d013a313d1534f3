//! The threads of a plugin, and the clock that stops handlers.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use cofferdam_sandbox::{Engine, EngineConfig, Plugin, Workers};

use crate::guests::{call, echo, handler, payloads, spec, stopped_in_time};

/// Waits for a condition, at most five seconds.
fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let began = Instant::now();
    while !holds() {
        assert!(began.elapsed() < Duration::from_secs(5), "{what} did not come to be");
        std::thread::sleep(Duration::from_millis(2));
    }
}

#[test]
fn threads_start_with_work_and_stop_without_and_lose_no_job() {
    let done = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&done);
    let workers = Workers::with_idle("count", 3, Duration::from_millis(50), move |_, job: usize| {
        assert_eq!(std::thread::current().name(), Some("plugin:count"));
        std::thread::sleep(Duration::from_micros(200));
        counted.fetch_add(job, Ordering::SeqCst);
    });
    assert_eq!(workers.threads(), 0);
    let mut sent = 0;
    for round in 0..3 {
        for job in 0..200 {
            assert!(workers.submit(job).is_ok());
            sent += job;
            assert!(workers.threads() <= 3);
        }
        until("the end of the work", || workers.pending() == 0);
        assert_eq!(done.load(Ordering::SeqCst), sent, "round {round}");
        until("the end of the idle threads", || workers.threads() == 0);
    }
    for _ in 0..100 {
        assert!(workers.submit(1).is_ok());
    }
    assert!(workers.close(Duration::from_secs(5)));
    assert_eq!(done.load(Ordering::SeqCst), sent + 100, "jobs were lost at the end");
}

#[test]
fn jobs_race_with_threads_that_are_about_to_end_and_none_is_lost() {
    let done = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&done);
    let workers = Workers::with_idle("race", 2, Duration::from_micros(50), move |_, ()| {
        counted.fetch_add(1, Ordering::SeqCst);
    });
    for sent in 1..=3_000 {
        assert!(workers.submit(()).is_ok());
        if sent % 3 == 0 {
            std::thread::sleep(Duration::from_micros(60));
        }
    }
    until("the end of the work", || workers.pending() == 0);
    assert_eq!(done.load(Ordering::SeqCst), 3_000);
}

#[test]
fn dropping_the_workers_finishes_what_is_queued_without_waiting() {
    let done = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&done);
    let workers = Workers::new("drop", 1, move |_, ()| {
        std::thread::sleep(Duration::from_millis(5));
        counted.fetch_add(1, Ordering::SeqCst);
    });
    (0..20).for_each(|_| assert!(workers.submit(()).is_ok()));
    let began = Instant::now();
    drop(workers);
    assert!(began.elapsed() < Duration::from_millis(50), "dropping waited for {:?}", began.elapsed());
    until("the end of the work", || done.load(Ordering::SeqCst) == 20);
}

#[test]
fn a_job_that_panics_ends_alone() {
    let done = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&done);
    let workers = Workers::new("panic", 1, move |_, job: usize| {
        assert_ne!(job, 1, "this job panics on purpose");
        counted.fetch_add(1, Ordering::SeqCst);
    });
    (0..3).for_each(|job| assert!(workers.submit(job).is_ok()));
    until("the end of the work", || done.load(Ordering::SeqCst) == 2 && workers.pending() == 0);
}

#[test]
fn a_guest_runs_on_a_worker_with_its_slot() {
    let plugin = Arc::new(Plugin::load(crate::guests::engine(), &echo(), spec("guest")).unwrap());
    let (replies, received) = std::sync::mpsc::channel();
    let workers = Workers::new("guest", 2, move |slot, message: cofferdam_model::Message| {
        let report = crate::guests::call_in(&plugin, slot, &message);
        replies.send(payloads(&report).concat()).unwrap();
    });
    for n in 0..50 {
        workers.submit(crate::guests::message(&n.to_string())).unwrap();
    }
    let mut seen: Vec<u32> = (0..50).map(|_| received.recv().unwrap().parse().unwrap()).collect();
    seen.sort_unstable();
    assert_eq!(seen, (0..50).collect::<Vec<_>>());
}

/// How often each ticker thread of this process has gone to sleep, by its id.
fn ticker_sleeps() -> BTreeMap<String, u64> {
    let tasks = std::fs::read_dir("/proc/self/task").unwrap().flatten();
    tasks
        .filter_map(|task| {
            let status = std::fs::read_to_string(task.path().join("status")).ok()?;
            let line = status.lines().find(|line| line.starts_with("voluntary_ctxt_switches"))?;
            let sleeps = line.split_whitespace().nth(1)?.parse().ok()?;
            status.starts_with("Name:\tepoch\n").then(|| (task.file_name().to_string_lossy().into_owned(), sleeps))
        })
        .collect()
}

#[test]
fn an_idle_engine_uses_no_time_and_wakes_for_the_next_call() {
    let older = ticker_sleeps();
    let engine = Engine::new(EngineConfig { instances_max: 2, memory_bytes_max: 64 << 20 }).unwrap();
    let plugin = Arc::new(Plugin::load(&engine, &echo(), spec("guest")).unwrap());
    assert!(call(&plugin).result.is_ok());
    std::thread::sleep(Duration::from_millis(300));
    let before = ticker_sleeps();
    std::thread::sleep(Duration::from_millis(400));
    let after = ticker_sleeps();
    // Engines of other tests may have come meanwhile, and may be busy; ours is among the new ones and must be asleep.
    let woken = |id: &String| after.get(id).zip(before.get(id)).map(|(after, before)| after - before);
    let fewest = before.keys().filter(|id| !older.contains_key(*id)).filter_map(woken).min();
    assert!(fewest.is_some_and(|times| times < 5), "an idle ticker woke {fewest:?} times in 400 ms");
    let spin = Plugin::load(&engine, &handler("", "", "(loop $on (br $on)) (i32.const 0)"), spec("spin")).unwrap();
    std::thread::sleep(Duration::from_millis(300));
    stopped_in_time(&Arc::new(spin));
}
