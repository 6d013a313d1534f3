//! What came of a plugin's cases, for machines, and as what is expected from now on.

use std::path::Path;

use anyhow::{Context, Result};
use cofferdam_sandbox::record::Calls;
use quick_junit::{NonSuccessKind, Report, TestCase, TestCaseStatus, TestSuite};
use serde_json::{Value as Json, json};
use toml_edit::{ArrayOfTables, DocumentMut, Item, Table, Value, value};

use super::log::add_calls;
use crate::cases::CaseResult;
use crate::offline::Ended;

/// Writes JUnit XML.
pub(super) fn junit(file: &Path, plugin: &str, results: &[CaseResult]) -> Result<()> {
    let mut suite = TestSuite::new(plugin);
    for result in results {
        let status = match &result.mismatch {
            None => TestCaseStatus::success(),
            Some(mismatch) => {
                let mut status = TestCaseStatus::non_success(NonSuccessKind::Failure);
                status.set_message(mismatch);
                status
            }
        };
        let mut case = TestCase::new(&result.name, status);
        case.set_classname(plugin).set_time(result.took);
        suite.add_test_case(case);
    }
    let mut report = Report::new("cofferdam test");
    report.add_test_suite(suite);
    let text = report.to_string().context("cannot write JUnit XML")?;
    std::fs::write(file, text).with_context(|| format!("cannot write {}", file.display()))
}

/// The results as a document.
pub(super) fn as_json(plugin: &str, results: &[CaseResult]) -> Json {
    let cases: Vec<Json> = results
        .iter()
        .map(|result| {
            let outcomes: Vec<Json> =
                result.ran.iter().map(|ran| json!({"outcome": ran.ended.word(), "text": ran.ended.text()})).collect();
            let mut calls = Calls::new();
            result.ran.iter().for_each(|ran| add_calls(&mut calls, &ran.calls));
            json!({
                "name": result.name, "ok": result.mismatch.is_none(), "mismatch": result.mismatch,
                "seconds": result.took.as_secs_f64(), "messages": outcomes,
                "host_calls": calls,
            })
        })
        .collect();
    let failed = results.iter().filter(|result| result.mismatch.is_some()).count();
    json!({"plugin": plugin, "cases": cases, "failed": failed})
}

/// Writes what came of the cases that did not match into their file, which keeps its comments and its order; how many that were.
pub(super) fn update(file: &Path, text: &str, results: &[CaseResult]) -> Result<usize> {
    let mut document: DocumentMut = text.parse().with_context(|| format!("in {}", file.display()))?;
    let cases =
        document.get_mut("case").and_then(Item::as_array_of_tables_mut).context("a file of cases has [[case]]")?;
    let mut changed = 0;
    for (case, result) in cases.iter_mut().zip(results) {
        if result.mismatch.is_some() {
            expect(case, result);
            changed += 1;
        }
    }
    std::fs::write(file, document.to_string()).with_context(|| format!("cannot write {}", file.display()))?;
    Ok(changed)
}

fn expect(case: &mut Table, result: &CaseResult) {
    case.remove("expect");
    case.remove("events");
    let failed = result.ran.iter().find(|ran| !matches!(ran.ended, Ended::Events(_) | Ended::NotWanted));
    let events: Vec<_> = result
        .ran
        .iter()
        .flat_map(|ran| match &ran.ended {
            Ended::Events(events) => events.as_slice(),
            _ => &[],
        })
        .collect();
    let word = failed.or_else(|| result.ran.last().filter(|_| events.is_empty())).map(|ran| ran.ended.word());
    if let Some(word) = word {
        case.insert("expect", value(word));
        return;
    }
    let mut tables = ArrayOfTables::new();
    for event in events {
        let mut table = Table::new();
        table.insert("stream", value(event.stream.as_str()));
        let payload: Json = serde_json::from_str(&event.payload).unwrap_or(Json::Null);
        if let Some(payload) = toml_of(&payload) {
            table.insert("payload", Item::Value(payload));
        }
        tables.push(table);
    }
    case.insert("events", Item::ArrayOfTables(tables));
}

/// JSON as TOML. TOML has no null: a member without a value is left out, which expects nothing of it.
fn toml_of(json: &Json) -> Option<Value> {
    Some(match json {
        Json::Null => return None,
        Json::Bool(truth) => (*truth).into(),
        Json::Number(number) => match number.as_i64() {
            Some(whole) => whole.into(),
            None => number.as_f64()?.into(),
        },
        Json::String(text) => text.as_str().into(),
        Json::Array(values) => Value::Array(values.iter().filter_map(toml_of).collect()),
        Json::Object(members) => {
            let members = members.iter().filter_map(|(name, json)| Some((name.as_str(), toml_of(json)?)));
            Value::InlineTable(members.collect())
        }
    })
}
