use std::path::Path;
use std::time::{Duration, Instant};

use cofferdam_tests::checker::{Left, check, full_length, ledger, ledger_of, payload, unsettled};
use cofferdam_tests::proxy::{Behaviour, Proxy};
use cofferdam_tests::{Host, Place, Redis, comes_true, program, program_with_mutants, publish, wait_until};
use rustix::process::Signal;

/// The lease of the tests' configuration.
const LEASE: Duration = Duration::from_secs(2);
/// How long a host may take to notice that a silent connection is dead, and to come back from its longest pause.
const SLACK: Duration = Duration::from_secs(20);

/// Hosts that work through a stream while something is done to the way between them and Redis.
pub(crate) struct Work {
    pub(crate) hosts: Vec<Host>,
    pub(crate) redis: Redis,
    _place: Place,
    published: u64,
}

impl Work {
    /// Starts two hosts, which find their Redis at `url`, and waits until both have read something.
    pub(crate) fn start(redis: Redis, url: &str) -> Self {
        Self::start_with(2, &program(), &[], redis, url)
    }

    fn start_with(count: usize, program: &Path, environment: &[(&str, &str)], redis: Redis, url: &str) -> Self {
        let place = Place::new();
        place.put_actor("retries = 2\ncrashes = 3\n[backoff]\nbase = \"100ms\"\n");
        let host = |number: usize| {
            let data = place.directory.path().join(format!("data{number}"));
            Host::start(program, url, &data, &place.plugins(), environment)
        };
        let hosts = (0..count).map(host).collect();
        let mut work = Work { hosts, redis, _place: place, published: 0 };
        wait_until("all hosts have read something", || {
            work.publish(20);
            std::thread::sleep(Duration::from_millis(50));
            // Of the consumers, the one whose name begins with ~ is not a host but where parked entries wait.
            let consumers = work.redis.cli(&["XINFO", "CONSUMERS", "stream:in", "group:actor"]);
            consumers.lines().filter(|line| line.contains('/') && !line.starts_with('~')).count() == count
        });
        work.settled_within(SLACK);
        work
    }

    pub(crate) fn publish(&mut self, count: u64) {
        publish(&self.redis, "stream:in", (self.published..self.published + count).map(payload));
        self.published += count;
    }

    /// Publishes 400 messages a second for as long as this; fewer in the long form, where outages would pile them up.
    pub(crate) fn publish_for(&mut self, time: Duration) {
        self.publish_every(Duration::from_millis(if full_length() { 1_000 } else { 100 }), time);
    }

    /// Publishes 40 messages at a time for as long as this.
    pub(crate) fn publish_every(&mut self, pause: Duration, time: Duration) {
        let until = Instant::now() + time;
        while Instant::now() < until {
            self.publish(40);
            std::thread::sleep(pause);
        }
    }

    /// Waits until nothing is left to do; how long it took.
    pub(crate) fn settled_within(&self, limit: Duration) -> Duration {
        let began = Instant::now();
        let done = comes_true(limit, || unsettled(&self.redis) == 0);
        assert!(done, "after {limit:?} {} entries are not settled", unsettled(&self.redis));
        began.elapsed()
    }

    /// What is left, which must be nothing, and what was charged, which must be what the payloads are to blame for.
    pub(crate) fn nothing_lost_doubled_or_charged(&mut self) {
        assert_eq!(check(&self.redis, self.published), Left::default());
        assert_eq!(ledger(&self.redis), ledger_of(self.published));
        assert!(self.hosts.iter_mut().all(Host::lives), "a host has ended");
    }
}

#[test]
fn a_network_that_is_cut_silent_late_slow_or_reset_loses_doubles_and_charges_nothing() {
    let redis = Redis::start();
    let proxy = Proxy::before(&redis);
    let mut work = Work::start(redis, &proxy.url());
    let each = Duration::from_secs(if full_length() { 60 } else { 3 });
    for behaviour in [
        Behaviour::Cut,
        Behaviour::BlackHole,
        Behaviour::Late(Duration::from_millis(200)),
        Behaviour::Trickle,
        Behaviour::ResetInPlaceOfReplies,
        Behaviour::LoseSettleReplies,
    ] {
        proxy.set(behaviour);
        work.publish_for(each);
        let seen = proxy.seen();
        proxy.set(Behaviour::Pass);
        // In between there is not always time to come to rest: a next trouble may follow upon the last.
        work.publish_for(Duration::from_millis(500));
        println!(
            "{behaviour:?}: {} connections, {} replies lost, {} of settles",
            seen.connections, seen.replies_lost, seen.settle_replies_lost
        );
    }
    let took = work.settled_within(2 * LEASE + SLACK);
    println!("at rest {took:?} after the last trouble");
    work.nothing_lost_doubled_or_charged();
}

/// Outages longer than a lease, with hardly time to breathe in between: entries change hands again and again, and none of
/// that is their own fault.
#[test]
fn a_network_that_comes_and_goes_buries_no_innocent() {
    let redis = Redis::start();
    let proxy = Proxy::before(&redis);
    let mut work = Work::start(redis, &proxy.url());
    for _ in 0..if full_length() { 40 } else { 5 } {
        // More than is done while the network is there, so that each outage comes upon work that is under way.
        work.publish(300);
        std::thread::sleep(Duration::from_millis(400));
        proxy.set(Behaviour::Cut);
        std::thread::sleep(Duration::from_millis(2_500));
        proxy.set(Behaviour::Pass);
    }
    let took = work.settled_within(2 * LEASE + SLACK);
    println!("at rest {took:?} after the last outage");
    work.nothing_lost_doubled_or_charged();
}

/// A connection on which a reply did not come in time may be half open: whoever keeps it tries it for ever.
#[test]
fn hosts_give_up_connections_that_have_gone_silent_for_good() {
    let redis = Redis::start();
    let proxy = Proxy::before(&redis);
    let mut work = Work::start(redis, &proxy.url());
    for _ in 0..if full_length() { 20 } else { 2 } {
        proxy.set(Behaviour::HalfOpen);
        work.publish_for(Duration::from_secs(3));
        proxy.set(Behaviour::Pass);
        let took = work.settled_within(2 * LEASE + SLACK);
        println!("at rest {took:?} after the end, with {} new connections", proxy.seen().connections);
    }
    work.nothing_lost_doubled_or_charged();
}

/// A read is on its way when its host gives it up and looks for what it may have brought; then it arrives. What it is given
/// then, no reply names, and no other host is there to find it.
#[test]
fn a_read_that_arrives_after_its_host_has_given_it_up_leaves_nothing_unhandled() {
    let redis = Redis::start();
    let proxy = Proxy::before(&redis);
    let mut work = Work::start_with(1, &program(), &[], redis, &proxy.url());
    proxy.set(Behaviour::KeepBack);
    work.publish(40);
    // Longer than a host waits for a reply, and looks for what is its own after that.
    std::thread::sleep(Duration::from_secs(8));
    work.hosts[0].signal(Signal::STOP);
    work.publish(40);
    proxy.set(Behaviour::Pass);
    let held = || work.redis.cli(&["XPENDING", "stream:in", "group:actor", "-", "+", "100"]).matches('/').count();
    wait_until("what was kept back has been given the entries", || held() > 0);
    // And all the rest of it has been carried out.
    std::thread::sleep(Duration::from_millis(500));
    println!("{} entries were given to a read that nobody waits for", held());
    work.hosts[0].signal(Signal::CONT);
    let took = work.settled_within(2 * LEASE + SLACK);
    println!("at rest {took:?} after it went on");
    work.nothing_lost_doubled_or_charged();
}

/// Loses the replies of so many settles.
fn with_settle_replies_lost(work: &mut Work, proxy: &Proxy, wanted: u64) {
    proxy.set(Behaviour::LoseSettleReplies);
    let began = Instant::now();
    while proxy.seen().settle_replies_lost < wanted {
        assert!(began.elapsed() < Duration::from_secs(600), "only {:?}", proxy.seen());
        // Never so many that the hosts are behind: then each settle would carry many messages, and there would be few.
        if unsettled(&work.redis) < 200 {
            work.publish(40);
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    let seen = proxy.seen();
    proxy.set(Behaviour::Pass);
    println!("{} of {} settles lost their reply in {:?}", seen.settle_replies_lost, seen.settles, began.elapsed());
}

#[test]
fn a_settle_whose_reply_is_lost_is_sent_again_and_doubles_nothing() {
    let redis = Redis::start();
    let proxy = Proxy::before(&redis);
    let mut work = Work::start(redis, &proxy.url());
    with_settle_replies_lost(&mut work, &proxy, if full_length() { 1_000 } else { 200 });
    work.settled_within(2 * LEASE + SLACK);
    work.nothing_lost_doubled_or_charged();
}

#[test]
fn the_same_lost_replies_double_outputs_when_the_fence_is_removed() {
    let redis = Redis::start();
    let proxy = Proxy::before(&redis);
    let mutant = [("COFFERDAM_MUTANT", "no-fence")];
    let mut work = Work::start_with(2, &program_with_mutants(), &mutant, redis, &proxy.url());
    with_settle_replies_lost(&mut work, &proxy, 20);
    work.settled_within(2 * LEASE + SLACK);
    let left = check(&work.redis, work.published);
    assert!(left.doubled > 0, "without the fence nothing was doubled: the test above proves nothing");
}

#[test]
fn clients_killed_twenty_times_a_second_lose_double_and_charge_nothing() {
    let redis = Redis::start();
    let url = redis.url();
    let mut work = Work::start(redis, &url);
    let until = Instant::now() + Duration::from_secs(if full_length() { 60 } else { 5 });
    let mut killed = 0;
    while Instant::now() < until {
        work.publish(20);
        std::thread::sleep(Duration::from_millis(50));
        killed += work.redis.number(&["CLIENT", "KILL", "TYPE", "normal"]);
    }
    println!("{killed} connections killed");
    assert!(killed > 50, "hardly anything was killed");
    let took = work.settled_within(2 * LEASE + SLACK);
    println!("at rest {took:?} after the last kill");
    work.nothing_lost_doubled_or_charged();
}

#[test]
fn scripts_flushed_all_the_time_lose_double_and_charge_nothing() {
    let redis = Redis::start();
    let url = redis.url();
    let mut work = Work::start(redis, &url);
    let until = Instant::now() + Duration::from_secs(if full_length() { 60 } else { 5 });
    let mut flushed = 0;
    while Instant::now() < until {
        work.publish(40);
        for _ in 0..10 {
            flushed += u64::from(work.redis.cli(&["SCRIPT", "FLUSH"]) == "OK");
        }
    }
    println!("{flushed} flushes");
    let took = work.settled_within(2 * LEASE + SLACK);
    println!("at rest {took:?} after the last flush");
    work.nothing_lost_doubled_or_charged();
}

#[test]
fn a_redis_killed_and_started_again_under_load_loses_nothing_that_it_had_confirmed() {
    let redis = Redis::start_with(&["--appendonly", "yes", "--appendfsync", "always"]);
    let url = redis.url();
    let mut work = Work::start(redis, &url);
    let restarts = if full_length() { 100 } else { 6 };
    for restart in 0..restarts {
        // Confirmed before the kill, and too much to be done by then.
        work.publish(500);
        std::thread::sleep(Duration::from_millis(100 + 37 * (restart % 8)));
        work.redis.restart();
        // Some kills come upon hosts that have found their Redis again, some upon hosts that have not.
        std::thread::sleep(Duration::from_millis(300 + 171 * (restart % 5)));
    }
    let took = work.settled_within(2 * LEASE + SLACK);
    println!("{restarts} restarts; at rest {took:?} after the last");
    work.nothing_lost_doubled_or_charged();
}
