//! `assert`: the figures as a script wants them, or exit status 5.

mod claim;
mod figures;

use std::thread::sleep;
use std::time::{Duration, Instant};

use clap::builder::PossibleValuesParser;
use schemars::JsonSchema;
use serde::{Serialize, Serializer};
use serde_json::{Value, json};

use super::Context;
use super::reasons::{self, Counted, Reason};
use crate::error::{Error, Result};
use crate::outcome::REASONS;
use crate::output::{table, yes_or_no};
use crate::remedy::Remedies;
use crate::state::Instance;
use crate::words::duration;
use claim::Comparison;
use figures::{ByName, Figure, Figures, Whose};

/// Between two looks while waiting.
const PAUSE: Duration = Duration::from_millis(50);

/// Exit status of what does not hold.
const NOT_HELD: u8 = 5;

/// Options of `assert`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
CMP is one of >= > <= < = != and a number, with K, M, G or %, like '>=90%'.
Options may be repeated; all must hold, or the exit status is 5.

Example:  sockaccel assert --redirected-share '>=0.9' --no-skipped any --within 5s")]
pub struct Args {
    #[command(flatten)]
    claims: Claims,
    /// None skipped or ejected for this, or `any`
    #[arg(long, value_name = "REASON", value_delimiter = ',', conflicts_with = "whose",
          hide_possible_values = true, value_parser = reason_names())]
    no_skipped: Vec<String>,
    /// Open sockets of PORT, cgroup PATH, pid:PID
    #[arg(long = "for", value_name = "WHOSE")]
    whose: Option<Whose>,
    /// Wait so long for it to hold, like 5s
    #[arg(long, value_name = "TIME", value_parser = duration)]
    within: Option<Duration>,
}

macro_rules! claims {
    ($($(#[doc = $doc:literal])+ $name:ident: $figure:ident,)*) => {
        /// One option for each figure.
        #[derive(Debug, clap::Args)]
        struct Claims {
            $(
                $(#[doc = $doc])+
                #[arg(long, value_name = "CMP")]
                $name: Vec<Comparison>,
            )*
        }

        impl Claims {
            fn all(&self) -> Vec<(Figure, Comparison)> {
                let mut all = Vec::new();
                $(all.extend(self.$name.iter().map(|cmp| (Figure::$figure, *cmp)));)*
                all
            }
        }
    };
}

claims! {
    /// Share of the bytes of enrolled sockets
    redirected_share: RedirectedShare,
    /// Bytes redirected
    redirected_bytes: RedirectedBytes,
    /// Messages redirected
    redirected_messages: RedirectedMessages,
    /// Bytes of enrolled sockets on the stack
    stack_bytes: StackBytes,
    /// Messages of enrolled sockets on the stack
    stack_messages: StackMessages,
    /// Sockets enrolled, not ejected; also closed
    enrolled: Enrolled,
    /// Sockets that found their peer
    paired: Paired,
    /// Sockets skipped or ejected
    skipped: Skipped,
}

fn reason_names() -> PossibleValuesParser {
    REASONS[1..]
        .iter()
        .map(|reason| reason.name)
        .chain(["any"])
        .collect::<Vec<_>>()
        .into()
}

/// What one claim came to.
#[derive(Debug, Serialize, JsonSchema)]
pub struct Finding {
    /// Which figure, and of `--no-skipped` the reason.
    figure: String,
    /// How it should be.
    wanted: String,
    /// What it is.
    #[serde(serialize_with = "as_number")]
    value: f64,
    /// Whether it is so.
    holds: bool,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde's signature")]
fn as_number<S: Serializer>(value: &f64, to: S) -> Result<S::Ok, S::Error> {
    number(*value).serialize(to)
}

/// What all claims came to.
#[derive(Debug, Serialize, JsonSchema)]
pub struct Outcome<'a> {
    /// All claims hold.
    holds: bool,
    /// Whose sockets count; null: all of the instance.
    #[serde(rename = "for")]
    whose: Option<String>,
    /// With `--within`: until it held, or the time was over.
    waited_seconds: f64,
    /// Each of them.
    claims: &'a [Finding],
    /// All figures.
    figures: &'a ByName,
    /// The most frequent reasons; empty with `--for`.
    not_accelerated: Vec<Counted>,
}

/// Runs `assert`.
pub fn run(context: &Context, args: &Args) -> Result<()> {
    let claims = args.claims.all();
    if claims.is_empty() && args.no_skipped.is_empty() {
        return Err(Error::Usage(
            "assert what? For instance:  sockaccel assert --redirected-share '>=0.9'".into(),
        ));
    }
    if args.whose.is_some() && claims.iter().any(|(figure, _)| *figure == Figure::Skipped) {
        return Err(Error::Usage(
            "--skipped cannot be used with --for: which sockets were skipped is not kept".into(),
        ));
    }
    let start = Instant::now();
    loop {
        let instance = Instance::open(&context.place)?;
        let figures = Figures::read(&instance, args.whose.as_ref())?;
        let findings = judge(&figures, &claims, &args.no_skipped);
        let holds = findings.iter().all(|finding| finding.holds);
        if holds || args.within.is_none_or(|limit| start.elapsed() >= limit) {
            return tell(
                context,
                args,
                &figures,
                &findings,
                &Remedies::of(&instance)?,
                start.elapsed(),
            );
        }
        drop(instance);
        sleep(PAUSE);
    }
}

fn judge(
    figures: &Figures,
    claims: &[(Figure, Comparison)],
    no_skipped: &[String],
) -> Vec<Finding> {
    let compared = claims.iter().map(|(figure, comparison)| {
        let value = figures.value(*figure);
        Finding {
            figure: figure.name().to_owned(),
            wanted: comparison.to_string(),
            value,
            holds: comparison.holds(value),
        }
    });
    let absent = no_skipped.iter().map(|reason| {
        let value = figures.kept_out(reason);
        Finding {
            figure: format!("skipped {reason}"),
            wanted: "=0".to_owned(),
            value,
            holds: value == 0.0,
        }
    });
    compared.chain(absent).collect()
}

fn tell(
    context: &Context,
    args: &Args,
    figures: &Figures,
    findings: &[Finding],
    remedies: &Remedies,
    waited: Duration,
) -> Result<()> {
    let holds = findings.iter().all(|finding| finding.holds);
    let reasons = figures.stats.as_ref().map(reasons::top).unwrap_or_default();
    let value = Outcome {
        holds,
        whose: args.whose.as_ref().map(ToString::to_string),
        waited_seconds: waited.as_secs_f64(),
        claims: findings,
        figures: &figures.by_name,
        not_accelerated: reasons.iter().map(|r| r.to_json(remedies)).collect(),
    };
    context.output.print(&value, || {
        table(
            &["figure", "wanted", "value", "holds"],
            findings.iter().map(|finding| {
                [
                    finding.figure.clone(),
                    finding.wanted.clone(),
                    number(finding.value).to_string(),
                    yes_or_no(finding.holds),
                ]
            }),
        )
    })?;
    if holds {
        return Ok(());
    }
    Err(Error::Found {
        exit_code: NOT_HELD,
        text: why(args, figures, findings, &reasons, remedies),
    })
}

fn why(
    args: &Args,
    figures: &Figures,
    findings: &[Finding],
    reasons: &[Reason],
    remedies: &Remedies,
) -> String {
    let broken: Vec<String> = findings
        .iter()
        .filter(|finding| !finding.holds)
        .map(|finding| {
            format!(
                "{} is {}, not {}",
                finding.figure,
                number(finding.value),
                finding.wanted
            )
        })
        .collect();
    let mut lines = vec![format!("assert: {}", broken.join("; "))];
    lines.push(match &args.whose {
        Some(whose) => format!("{} open sockets of {whose} are enrolled", figures.sockets()),
        None => format!("{} sockets were seen", figures.sockets()),
    });
    lines.extend(
        reasons
            .iter()
            .map(|reason| reason.to_text(&reason.remedy(remedies))),
    );
    lines.join("\n  ").replace("\n  \n", "\n")
}

/// Whole numbers without a point; shares to four places.
fn number(value: f64) -> Value {
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "checked to be a count"
    )]
    if value.fract() == 0.0 && (0.0..9e15).contains(&value) {
        return json!(value as u64);
    }
    json!((value * 10_000.0).round() / 10_000.0)
}
