//! The steps of admission, in their order, and what each said of a candidate.

use std::fmt;
use std::time::Instant;

use serde::{Deserialize, Serialize};

use crate::escape::safe_lines;

/// A step of admission. What costs nothing comes before the compiler, and nothing that nobody vouches for reaches it when
/// signatures are required.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Step {
    /// The file is all there.
    WholeFile,
    /// What it asks for can be read.
    Manifest,
    /// Somebody who is trusted has signed it.
    Signature,
    /// It asks for no more than the operator grants.
    Grants,
    /// Its name and its group are its own.
    Neighbours,
    /// It has not too much of anything for the compiler.
    Caps,
    /// It compiles within the bounds, in the jail.
    Compile,
    /// It exports and imports what the contract says.
    World,
    /// An instance of it starts.
    Trial,
    /// Its own test cases come out as expected.
    Cases,
    /// It asks for no more than its plugin has been allowed, or somebody has approved it.
    Approval,
}

impl Step {
    /// Its name, for people.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Step::WholeFile => "whole file",
            Step::Manifest => "manifest",
            Step::Signature => "signature",
            Step::Grants => "grants",
            Step::Neighbours => "neighbours",
            Step::Caps => "caps",
            Step::Compile => "compile",
            Step::World => "world",
            Step::Trial => "trial",
            Step::Cases => "cases",
            Step::Approval => "approval",
        }
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// How a step went.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Went {
    Ok,
    /// It had nothing to look at.
    Skipped,
    /// It needs something of a person.
    Waits,
    Refused,
}

/// What a step said.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct StepReport {
    pub(crate) step: Step,
    pub(crate) went: Went,
    /// What it found, or what is wrong and what to do.
    pub(crate) text: String,
    /// How long it took.
    pub(crate) ms: u64,
}

/// Why a candidate may not run.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{step}: {text}")]
pub(crate) struct Refusal {
    /// The step that refused it.
    pub(crate) step: Step,
    /// What is wrong, and what to do.
    pub(crate) text: String,
}

/// A refusal. Its text goes to terminals, logs, files and Redis, and may quote what a plugin's author wrote: it is escaped and cut here.
/// Line ends stay, so whatever quotes an author's name or text escapes those itself.
pub(crate) fn refuse(step: Step, text: impl fmt::Display) -> Refusal {
    Refusal { step, text: safe_lines(&text.to_string()) }
}

/// The steps of one candidate, as they are done.
#[derive(Debug)]
pub(crate) struct Steps {
    since: Instant,
    done: Vec<StepReport>,
}

impl Default for Steps {
    fn default() -> Self {
        Steps { since: Instant::now(), done: Vec::new() }
    }
}

impl Steps {
    /// A step is through. The time since the one before is its.
    pub(crate) fn ok(&mut self, step: Step, text: impl fmt::Display) {
        self.add(step, Went::Ok, text);
    }

    /// A step had nothing to look at.
    pub(crate) fn skipped(&mut self, step: Step, text: impl fmt::Display) {
        self.add(step, Went::Skipped, text);
    }

    /// A step waits for a person.
    pub(crate) fn waits(&mut self, step: Step, text: impl fmt::Display) {
        self.add(step, Went::Waits, text);
    }

    /// A step has refused it.
    pub(crate) fn refused(&mut self, refusal: &Refusal) {
        self.add(refusal.step, Went::Refused, &refusal.text);
    }

    fn add(&mut self, step: Step, went: Went, text: impl fmt::Display) {
        let now = Instant::now();
        let ms = u64::try_from((now - self.since).as_millis()).unwrap_or(u64::MAX);
        self.since = now;
        self.done.push(StepReport { step, went, text: safe_lines(&text.to_string()), ms });
    }

    /// What was done.
    pub(crate) fn reports(&self) -> &[StepReport] {
        &self.done
    }
}

/// The steps as lines, one each; further lines of a text are indented below it.
pub(crate) fn as_lines(steps: &[StepReport]) -> Vec<String> {
    let mut lines = Vec::new();
    for StepReport { step, went, text, ms } in steps {
        let word = match went {
            Went::Ok => "ok",
            Went::Skipped => "-",
            Went::Waits => "waits",
            Went::Refused => "REFUSED",
        };
        let mut parts = text.lines();
        let time = if *ms >= 10 { format!(" ({:.2} s)", *ms as f64 / 1e3) } else { String::new() };
        lines.push(format!("{word:<8} {step:<11} {}{time}", parts.next().unwrap_or_default()).trim_end().to_owned());
        lines.extend(parts.map(|part| format!("{:20} {part}", "")));
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_step_is_a_line_with_its_word_and_what_it_says() {
        let mut steps = Steps::default();
        steps.ok(Step::WholeFile, "its sha256 is the manifest's");
        steps.skipped(Step::Signature, "");
        steps.refused(&refuse(Step::Grants, "not granted;\nadd this"));
        let lines = as_lines(steps.reports());
        assert_eq!(
            lines,
            [
                "ok       whole file  its sha256 is the manifest's",
                "-        signature",
                "REFUSED  grants      not granted;",
                "                     add this",
            ]
        );
    }
}
