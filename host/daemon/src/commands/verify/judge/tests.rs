use cofferdam_model::invariants::{LetterFault, OutputRecord};
use cofferdam_streams::{GroupInfo, Ledger, PendingEntry, StreamFacts};

use super::super::gather::Letter;
use super::*;

fn id(ms: u64) -> EntryId {
    EntryId { ms, seq: 0 }
}

/// Five messages: 1 and 2 committed, 3 filtered, 4 dead, 5 pending.
fn good() -> Gathered {
    let ends = StreamFacts { length: 5, entries_added: 5, first: Some(id(1)), last: id(5), max_deleted: id(0) };
    let group = GroupInfo { pending: 1, last_delivered: id(5), entries_read: Some(5), ..GroupInfo::default() };
    let tally = Tally { committed: 2, filtered: 1, dead: 1, outputs: 2, ..Tally::default() };
    let ledger = Ledger { tally, base_read: Some(0), start: Some(String::from("0-0")), floor: None };
    let pending = vec![PendingEntry { id: id(5), consumer: String::from("h/b") }];
    let facts = LaneFacts { stream: ends.clone(), group, ledger, pending };
    let lane = Lane { stream: "s".into(), group: "g".into(), facts: Some(facts), is_redrive: false, is_real: true };
    let input = StreamRead { facts: ends, ids: (1..=5).map(id).collect(), ..StreamRead::default() };
    let output = |ms| OutputRecord { lane: 0, source: id(ms), index: 0, total: 1, place: 1 };
    let letter = Letter { id: id(9), of: Some((0, id(4))), faults: Vec::new(), attempts: 4 };
    let ends = StreamFacts { length: 2, entries_added: 2, first: Some(id(7)), last: id(8), max_deleted: id(0) };
    let out = StreamRead { facts: ends, place: 1, ..StreamRead::default() };
    Gathered {
        lanes: vec![lane],
        streams: BTreeMap::from([(String::from("s"), input), (String::from("out"), out)]),
        outputs: vec![output(2), output(1)],
        letters: vec![letter],
        log_is_whole: true,
        ..Gathered::default()
    }
}

fn violated(mut gathered: Gathered) -> Vec<&'static str> {
    let checks = judge(&mut gathered).checks;
    checks.iter().filter(|check| check.standing == Standing::Violated).map(|check| check.name).collect()
}

fn tally(gathered: &mut Gathered) -> &mut Tally {
    &mut gathered.lanes[0].facts.as_mut().unwrap().ledger.tally
}

#[test]
fn a_good_system_is_called_good() {
    let judgement = judge(&mut good());
    assert!(judgement.checks.iter().all(|check| check.standing == Standing::Ok), "{judgement:#?}");
    assert!(judgement.summary.starts_with("nothing lost, nothing doubled: "), "{}", judgement.summary);
}

#[test]
fn an_ack_without_outputs_is_found() {
    // The host acknowledged first and died: no output, no pending entry, and nothing in the ledger.
    let mut lost = good();
    lost.outputs.pop();
    let counts = tally(&mut lost);
    (counts.committed, counts.outputs) = (1, 1);
    assert_eq!(violated(lost), ["read = settled + pending", "no trace = filtered"]);
}

#[test]
fn a_doubled_output_is_found() {
    let mut doubled = good();
    doubled.outputs.push(OutputRecord { lane: 0, source: id(1), index: 0, total: 1, place: 1 });
    assert_eq!(violated(doubled), ["outputs once, all or none", "outputs = ledger"]);
}

#[test]
fn a_message_that_is_committed_and_dead_is_found() {
    let mut both = good();
    both.letters[0].of = Some((0, id(1)));
    assert_eq!(violated(both), ["never committed and dead", "no trace = filtered"]);
}

#[test]
fn a_dead_letter_that_vanished_is_found_and_one_that_was_discarded_is_not_missed() {
    let mut gone = good();
    gone.letters.clear();
    assert_eq!(violated(gone), ["no trace = filtered", "dead letters = ledger"]);
    let mut discarded = good();
    discarded.letters.clear();
    discarded.discarded.insert((0, id(4)));
    discarded.discards.insert(String::from("g"), 1);
    assert_eq!(violated(discarded), [""; 0]);
}

#[test]
fn a_dead_letter_without_evidence_is_found() {
    let mut bare = good();
    bare.letters[0].faults.push(LetterFault::NoAttempts);
    assert_eq!(violated(bare), ["dead letters have evidence"]);
}

#[test]
fn entries_trimmed_before_they_were_read_are_found() {
    let mut trimmed = good();
    let facts = trimmed.lanes[0].facts.as_mut().unwrap();
    facts.stream.entries_added = 8;
    trimmed.streams.get_mut("s").unwrap().facts.entries_added = 8;
    assert_eq!(violated(trimmed), ["read before trimmed"]);
}

#[test]
fn a_group_that_is_gone_is_found() {
    let mut gone = good();
    gone.lanes[0].facts = None;
    assert!(violated(gone).contains(&"read = settled + pending"));
}

#[test]
fn what_was_trimmed_is_not_called_lost() {
    let mut trimmed = good();
    // The output of message 1 was trimmed from its stream.
    trimmed.outputs.pop();
    let out = trimmed.streams.get_mut("out").unwrap();
    out.facts = StreamFacts { length: 1, first: Some(id(8)), ..out.facts.clone() };
    let judgement = judge(&mut trimmed);
    let open: Vec<&str> = judgement
        .checks
        .iter()
        .filter(|check| check.standing == Standing::NotProvable)
        .map(|check| check.name)
        .collect();
    assert_eq!(open, ["outputs = ledger", "no trace = filtered"]);
    assert!(judgement.checks.iter().all(|check| check.standing != Standing::Violated), "{judgement:#?}");
}
#[test]
fn an_output_that_was_deleted_by_id_is_missed_and_its_place_is_named() {
    let mut deleted = good();
    // The output of message 2 stood behind that of message 1, and was deleted; nothing was trimmed.
    deleted.outputs.remove(0);
    let out = deleted.streams.get_mut("out").unwrap();
    out.facts = StreamFacts { length: 1, max_deleted: id(8), ..out.facts.clone() };
    out.deleted = 1;
    out.gaps.push(Gap { id: id(8), count: 1, before: Some((0, id(1))), behind: None });
    let judgement = judge(&mut deleted);
    let named = |name: &str| {
        let check = judgement.checks.iter().find(|check| check.name == name).unwrap();
        assert_eq!(check.standing, Standing::Violated, "{check:?}");
        check.examples.clone()
    };
    assert_eq!(named("outputs = ledger"), ["out 8-0 was deleted by id (XDEL), behind the output of s 1-0"]);
    assert!(named("no trace = filtered").iter().any(|example| example.starts_with("s 2-0 ")));
}

#[test]
fn a_message_that_lacks_a_later_output_is_a_violation_even_where_streams_were_trimmed() {
    let mut partial = good();
    partial.outputs.iter_mut().filter(|output| output.source == id(2)).for_each(|output| output.total = 2);
    tally(&mut partial).outputs = 4;
    let out = partial.streams.get_mut("out").unwrap();
    out.facts = StreamFacts { entries_added: 4, first: Some(id(7)), ..out.facts.clone() };
    assert_eq!(violated(partial), ["outputs once, all or none"]);
}

#[test]
fn dead_letters_that_kept_moving_are_no_proof() {
    let mut gone = good();
    gone.letters.clear();
    let mut judgement = judge(&mut gone);
    judgement.excuse_moved();
    assert!(judgement.checks.iter().all(|check| check.standing != Standing::Violated), "{judgement:#?}");
}
