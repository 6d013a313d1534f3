//! What happens to the promises when another server takes Redis's place.
//!
//! Replication is asynchronous: a promoted replica may be behind, but what it has is a prefix of what was written, so an
//! acknowledgement that it has comes with all of its outputs. The long variants run with COFFERDAM_CHAOS=full.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::{Duration, Instant};

use cofferdam_tests::picture::Picture;
use cofferdam_tests::producer::{Producer, Promise};
use cofferdam_tests::servers::{Forwarder, Server, command, connection, full, two_hosts, two_hosts_seen_at};
use cofferdam_tests::{Host, Place, cofferdam_in, errors, program, wait_until};
use redis::Value;

use crate::ordered::{keyed, out_of_order, put_ordered};

/// How long everything may take to come to rest on a busy machine.
const REST: Duration = Duration::from_secs(60);
/// From the failover to the first new output.
const RESUME_MAX: Duration = Duration::from_secs(15);
/// How long the hosts are at work before each failover.
const LOAD: Duration = Duration::from_secs(1);
/// How long the replica is behind when its master dies: on a loopback it would otherwise hardly ever be.
const BEHIND: Duration = Duration::from_millis(300);

fn outputs(server: &Server) -> u64 {
    server.ask(&["XLEN", "stream:out"])
}

/// A replica of what stands behind a port.
fn replica_of(port: u16) -> Server {
    let port = port.to_string();
    let mut replica =
        Server::new(&["--appendonly", "no", "--repl-diskless-sync-delay", "0", "--replicaof", "127.0.0.1", &port]);
    replica.start();
    wait_until("the replica is in step", || replication(&replica).contains("master_link_status:up"));
    replica
}

fn replication(server: &Server) -> String {
    server.ask(&["INFO", "replication"])
}

fn master() -> Server {
    let mut master = Server::new(&["--appendonly", "no", "--repl-diskless-sync-delay", "0"]);
    master.start();
    master
}

/// What became of a series of failovers.
#[derive(Default)]
struct Failovers {
    accepted: usize,
    lost: BTreeSet<u64>,
    /// From the switch of the address to the first new output.
    resumes: Vec<Duration>,
}

/// Kills the master again and again, promotes its replica, and moves the address that hosts and producers know.
fn promotions(promise: Promise, rounds: usize) -> Failovers {
    let place = Place::new();
    let mut master = master();
    // What hosts and producers know, and the way from the master to its replica.
    let (front, link) = (Forwarder::to(master.port), Forwarder::to(master.port));
    let mut replica = replica_of(link.port);
    let _hosts = two_hosts(&place, &front.url());
    let (mut all, mut expected) = (Failovers::default(), BTreeSet::new());
    let mut producer = Producer::start(&front.url(), 0, promise);
    for _ in 0..rounds {
        let before = outputs(&master);
        wait_until("the hosts are at work", || outputs(&master) > before + 100);
        std::thread::sleep(LOAD);
        link.hold();
        std::thread::sleep(BEHIND);
        master.kill();
        // What had not arrived never will.
        link.switch(master.port);
        let promised = producer.stop();
        all.accepted += promised.accepted.len();
        expected.extend(promised.accepted.into_keys());
        replica.ask::<String>(&["REPLICAOF", "NO", "ONE"]);
        let picture = Picture::of(&replica.url());
        assert_eq!(picture.torn(), Vec::<String>::new(), "the promoted replica holds a part of a commit");
        let lost = picture.missing(&expected);
        expected.retain(|seq| !lost.contains(seq));
        all.lost.extend(lost);
        producer = Producer::start(&front.url(), promised.next, promise);
        let switched = Instant::now();
        front.switch(replica.port);
        let there = picture.outputs() as u64;
        wait_until("the hosts go on", || outputs(&replica) > there);
        all.resumes.push(switched.elapsed());
        link.switch(replica.port);
        master = replica;
        replica = replica_of(link.port);
    }
    let promised = producer.stop();
    expected.extend(promised.accepted.into_keys());
    let rest = Picture::at_rest(&master.url(), REST);
    println!(
        "{rounds} promotions: {} of {} accepted entries lost, work resumed after {:?} at most",
        all.lost.len(),
        all.accepted,
        all.resumes.iter().max()
    );
    rest.assert_good();
    assert_eq!(rest.missing(&expected), BTreeSet::new(), "accepted entries went without a failover");
    assert!(all.resumes.iter().all(|resume| *resume < RESUME_MAX), "{:?}", all.resumes);
    all
}

fn promotion_rounds() -> usize {
    if full() { 50 } else { 3 }
}

#[test]
fn a_promoted_replica_holds_no_part_of_a_commit_and_nothing_is_doubled() {
    let all = promotions(Promise::Reply, promotion_rounds());
    assert!(!all.lost.is_empty(), "the replica was never behind, and the test beside proves nothing");
}

#[test]
fn a_promoted_replica_holds_whatever_a_waiting_producer_was_promised() {
    let all = promotions(Promise::Replica, promotion_rounds());
    assert!(all.accepted > 0, "nothing was accepted");
    assert_eq!(all.lost, BTreeSet::new());
}

/// What became of the order of a key.
pub(crate) struct Order {
    /// Promotions that took back what was finished while the next of its key ran.
    taken_back: usize,
    /// Outputs out of their order.
    pub(crate) broken: usize,
}

/// Promotes a replica that has not seen how a message was finished, while the next of its key runs; until an order is broken.
pub(crate) fn order_over_promotions(program: &Path, environment: &[(&str, &str)], rounds: usize) -> Order {
    let place = Place::new();
    let mut master = master();
    let (front, link) = (Forwarder::to(master.port), Forwarder::to(master.port));
    let mut replica = replica_of(link.port);
    put_ordered(&place, "[limits]\ndeadline = \"60s\"\n");
    let _host = Host::start(program, &front.url(), &place.directory.path().join("data"), &place.plugins(), environment);
    let pending = |server: &Server| {
        let reply = connection(&server.url()).map(|mut connection| {
            command(&["XPENDING", "stream:in", "group:actor", "-", "+", "10"]).query::<Vec<Value>>(&mut connection)
        });
        reply.and_then(Result::ok).map_or(0, |pending| pending.len())
    };
    let mut all = Order { taken_back: 0, broken: 0 };
    for round in 0..rounds as u64 {
        let before = outputs(&master);
        // It may be in step and hear of nothing more for a second, until it has said so.
        let mark = round.to_string();
        master.ask::<String>(&["SET", "mark", &mark]);
        wait_until("the replica follows", || replica.ask::<Option<String>>(&["GET", "mark"]).as_ref() == Some(&mark));
        // In one step, so that one read brings both. The second ends while nobody answers: its settle is on its way to whoever comes.
        let one = |seq: u64| keyed(&format!(r#"{{"do":"emit","busy_us":3000000,"seq":{seq}}}"#), 0);
        let both = "for _, one in ipairs(ARGV) do redis.call('XADD', KEYS[1], '*', 'payload', one) end";
        master.ask::<Value>(&["EVAL", both, "1", "stream:in", &one(2 * round), &one(2 * round + 1)]);
        let began = Instant::now();
        wait_until("the replica knows who has both", || pending(&replica) == 2);
        link.hold();
        wait_until("the first is finished", || outputs(&master) > before);
        let took = began.elapsed();
        master.freeze();
        std::thread::sleep(took + BEHIND);
        master.kill();
        link.switch(master.port);
        replica.ask::<String>(&["REPLICAOF", "NO", "ONE"]);
        all.taken_back += usize::from(outputs(&replica) == before && pending(&replica) == 2);
        front.switch(replica.port);
        wait_until("both are finished", || pending(&replica) == 0);
        assert_eq!(outputs(&replica), before + 2, "lost or doubled");
        all.broken += out_of_order(&replica.url(), |_| 0);
        if all.broken > 0 {
            break;
        }
        link.switch(replica.port);
        master = replica;
        replica = replica_of(link.port);
    }
    println!(
        "{} of {rounds} promotions took back what was finished, {} outputs out of order",
        all.taken_back, all.broken
    );
    all
}

#[test]
fn the_order_of_a_key_is_kept_by_whatever_a_promoted_replica_has_lost() {
    let order = order_over_promotions(&program(), &[], promotion_rounds());
    assert_eq!(order.broken, 0, "outputs out of the order of their key");
    assert!(order.taken_back > 0, "no promotion took anything back, and this proves nothing");
}

/// A master, its replica, and three sentinels that watch them.
struct Watched {
    servers: [Server; 2],
    sentinels: [Server; 3],
}

const MASTER_NAME: &str = "cofferdam";

impl Watched {
    fn start() -> Self {
        let master = master();
        let replica = replica_of(master.port);
        let sentinels = [(); 3].map(|()| {
            let mut sentinel = Server::new(&["--sentinel"]);
            let config = format!(
                "port {}\nbind 127.0.0.1\nlogfile redis.log\nsentinel monitor {MASTER_NAME} 127.0.0.1 {} 2\n\
                 sentinel down-after-milliseconds {MASTER_NAME} 2500\nsentinel failover-timeout {MASTER_NAME} 3000\n",
                sentinel.port, master.port
            );
            std::fs::write(sentinel.directory.join("sentinel.conf"), config).unwrap();
            sentinel.start();
            sentinel
        });
        let watched = Watched { servers: [master, replica], sentinels };
        wait_until("the sentinels know one another and the replica", || {
            watched.sentinels.iter().all(|sentinel| {
                let text: String = sentinel.ask(&["INFO", "sentinel"]);
                text.contains("status=ok") && text.contains("slaves=1,sentinels=3")
            })
        });
        watched
    }

    /// As a host is given it.
    fn url(&self) -> String {
        let addresses: Vec<String> =
            self.sentinels.iter().map(|sentinel| format!("127.0.0.1:{}", sentinel.port)).collect();
        format!("redis+sentinel://{}/{MASTER_NAME}", addresses.join(","))
    }

    /// Asks for a failover as an operator does; false when it cannot begin yet.
    fn begin_failover(&self) -> bool {
        let mut connection = connection(&self.sentinels[0].url()).expect("the sentinel answers");
        command(&["SENTINEL", "FAILOVER", MASTER_NAME]).query::<String>(&mut connection).is_ok()
    }

    /// Which of the two is the master, as most sentinels say; none when they do not agree.
    fn master(&self) -> Option<usize> {
        let says = |sentinel: &Server| {
            let (_, port): (String, u16) = sentinel.ask(&["SENTINEL", "GET-MASTER-ADDR-BY-NAME", MASTER_NAME]);
            self.servers.iter().position(|server| server.port == port)
        };
        let said: Vec<Option<usize>> = self.sentinels.iter().map(says).collect();
        (0..2).find(|which| said.iter().filter(|one| **one == Some(*which)).count() >= 2)
    }
}

#[test]
fn hosts_follow_sentinel_to_the_new_master_and_lose_nothing() {
    let place = Place::new();
    let mut watched = Watched::start();
    // The producers of the tests know no Sentinel: they have an address that the test moves.
    let front = Forwarder::to(watched.servers[0].port);
    // Ready hosts are seen on the master, which is where they must have gone.
    let (url, master_url) = (watched.url(), front.url());
    let _hosts = two_hosts_seen_at(&place, &url, &master_url);
    let doctor = cofferdam_in(place.directory.path(), &["doctor", "--redis", &url]);
    let said = String::from_utf8_lossy(&doctor.stdout).into_owned();
    assert!(said.contains("answers at cofferdam by sentinel"), "{said}{}", errors(&doctor));
    let mut producer = Producer::start(&master_url, 0, Promise::Replica);
    let (mut resumes, mut accepted, mut master) = (Vec::new(), BTreeSet::new(), 0);
    for round in 0..if full() { 20 } else { 2 } {
        let before = outputs(&watched.servers[master]);
        wait_until("the hosts are at work", || outputs(&watched.servers[master]) > before + 100);
        std::thread::sleep(LOAD);
        let began = Instant::now();
        if round % 2 == 0 {
            watched.servers[master].kill();
        } else {
            // The old master lives, and turns into a replica under the hands of those who are connected to it.
            wait_until("the sentinels begin", || watched.begin_failover());
        }
        let next = 1 - master;
        wait_until("the sentinels have made the replica the master", || watched.master() == Some(next));
        wait_until("it says so itself", || replication(&watched.servers[next]).contains("role:master"));
        let announced = began.elapsed();
        let promised = producer.stop();
        accepted.extend(promised.accepted.into_keys());
        front.switch(watched.servers[next].port);
        producer = Producer::start(&master_url, promised.next, Promise::Reply);
        let there = outputs(&watched.servers[next]);
        // A master that lives goes on as one for some ten seconds more, until the sentinels tell it. Whoever is connected to
        // it cannot know; what it takes in that time is lost as a whole.
        let demoted = || round % 2 == 0 || replication(&watched.servers[master]).contains("role:slave");
        wait_until("the old master is none any more", demoted);
        let gone = if round % 2 == 0 { began } else { Instant::now() };
        wait_until("the hosts go on", || outputs(&watched.servers[next]) > there);
        resumes.push((announced, gone.elapsed()));
        // Until the old master is back as a replica there is nobody to wait for.
        let promised = producer.stop();
        accepted.extend(promised.accepted.into_keys());
        if !watched.servers[master].lives() {
            watched.servers[master].start();
        }
        wait_until("the old master is a replica", || {
            let text = replication(&watched.servers[master]);
            text.contains("role:slave") && text.contains("master_link_status:up")
        });
        producer = Producer::start(&master_url, promised.next, Promise::Replica);
        master = next;
    }
    let promised = producer.stop();
    accepted.extend(promised.accepted.into_keys());
    let rest = Picture::at_rest(&watched.servers[master].url(), REST);
    println!(
        "failovers by sentinel, every other one of a living master: {} accepted; announced after, and work resumed after \
         the old master was gone: {resumes:?}",
        accepted.len()
    );
    rest.assert_good();
    assert_eq!(rest.missing(&accepted), BTreeSet::new());
    assert!(resumes.iter().all(|(_, resumed)| *resumed < RESUME_MAX), "{resumes:?}");
}
