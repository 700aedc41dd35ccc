//! What `doctor` says of one thing: a row of its table.

use std::fmt;

use schemars::JsonSchema;
use serde::Serialize;

use super::Risk;

/// How one thing is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// As it should be.
    Ok,
    /// Not as on plain TCP, or not as usual; programs of one kind are concerned.
    Differs,
    /// Something that must hold does not: exit status 3.
    Fails,
    /// Nothing is known, for the reason that was found.
    NotChecked,
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ok => "ok",
            Self::Differs => "differs",
            Self::Fails => "FAILS",
            Self::NotChecked => "not checked",
        })
    }
}

/// A thing that is looked at, and what each answer means for which programs:
/// the manual has the same words.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Topic {
    /// Its name in tables and JSON.
    pub name: &'static str,
    /// What it means when it is as it should be.
    pub sound: &'static str,
    /// What it means otherwise.
    pub otherwise: &'static str,
}

/// One row.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Finding {
    /// The name of its [`Topic`].
    pub check: &'static str,
    /// A cgroup, where the row is about one.
    pub object: Option<String>,
    /// How it is.
    pub result: Verdict,
    /// What was seen, or why nothing was.
    pub found: String,
    /// What that means for which programs.
    pub meaning: String,
    /// The risk to allow, if that is what it fails for.
    pub risk: Option<Risk>,
}

impl Topic {
    /// A row about this, with the meaning that goes with the verdict.
    pub fn finding(&self, result: Verdict, found: impl Into<String>) -> Finding {
        let meaning = match result {
            Verdict::Ok => self.sound.to_owned(),
            Verdict::Differs | Verdict::Fails => self.otherwise.to_owned(),
            Verdict::NotChecked => format!("unknown whether: {}", self.sound),
        };
        Finding {
            check: self.name,
            object: None,
            result,
            found: found.into(),
            meaning,
            risk: None,
        }
    }
}

impl Finding {
    /// The same row, which fails unless this risk is allowed: then it differs.
    #[must_use]
    pub fn unless(mut self, risk: Option<Risk>, allowed: &[Risk]) -> Self {
        if self.result != Verdict::Fails {
            return self;
        }
        match risk {
            Some(risk) if allowed.contains(&risk) => self.result = Verdict::Differs,
            other => self.risk = other,
        }
        self
    }

    /// The same row, about this object.
    #[must_use]
    pub fn about(mut self, object: impl Into<String>) -> Self {
        self.object = Some(object.into());
        self
    }
}
