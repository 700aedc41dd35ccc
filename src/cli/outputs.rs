//! The registry of `--json` outputs: a line for each command. From it come the
//! schemas in docs/schema, the JSON FIELDS of the man pages, and the test that
//! holds both to what the commands really print.

use schemars::generate::SchemaSettings;
use schemars::{JsonSchema, Schema};
use serde_json::Value;

use super::{
    adopt, apply, assert, disable, dump, endpoint, entry, events, explain, identity, instances,
    policy, run, service, stats, status,
};
use crate::{bench, doctor, error, spec};

/// What one command prints with `--json`.
#[derive(Debug)]
pub struct Json {
    /// The command as it is typed, with an option that makes it print something else.
    pub command: &'static str,
    /// Its schema.
    pub schema: Schema,
}

/// Commands that print no JSON.
pub const TEXT_ONLY: &[&str] = &["completions", "man", "top"];

/// All of them, and `errors`.
pub fn all() -> Vec<Json> {
    vec![
        of::<error::Failure>("errors"),
        of::<entry::InstanceChanged>("enable"),
        of::<disable::Disabled>("disable"),
        of::<entry::InstanceChanged>("upgrade"),
        of::<adopt::Report>("adopt"),
        of::<run::Told>("run"),
        of::<apply::Applied>("apply"),
        of::<spec::Spec>("export"),
        of::<status::State>("status"),
        of::<Vec<instances::Row>>("status --all"),
        of::<doctor::Diagnosis>("doctor"),
        of::<stats::Counters>("stats"),
        of::<stats::Watched>("stats --watch"),
        of::<explain::Explanations>("explain"),
        of::<assert::Outcome>("assert"),
        of::<events::Line>("events"),
        of::<Vec<dump::Socket>>("dump sockhash"),
        of::<Vec<dump::Claimed>>("dump connections"),
        of::<Vec<dump::EndpointRow>>("dump endpoints"),
        of::<Vec<dump::IdentityRow>>("dump identities"),
        of::<Vec<dump::PolicyRow>>("dump policy"),
        of::<Vec<dump::ServiceRow>>("dump services"),
        of::<dump::ConfigRow>("dump config"),
        of::<entry::Changed>("endpoint add"),
        of::<entry::Changed>("endpoint del"),
        of::<Vec<endpoint::Row>>("endpoint list"),
        of::<endpoint::Row>("endpoint get"),
        of::<entry::Changed>("identity add"),
        of::<entry::Changed>("identity del"),
        of::<Vec<identity::Row>>("identity list"),
        of::<identity::Resolved>("identity get"),
        of::<entry::Changed>("service add"),
        of::<entry::Changed>("service del"),
        of::<Vec<service::Row>>("service list"),
        of::<service::Row>("service get"),
        of::<entry::Changed>("policy add"),
        of::<entry::Changed>("policy del"),
        of::<Vec<policy::Row>>("policy list"),
        of::<policy::Row>("policy get"),
        of::<bench::Document>("bench"),
    ]
}

fn of<T: JsonSchema>(command: &'static str) -> Json {
    let mut schema = SchemaSettings::draft2020_12()
        .for_serialize()
        .into_generator()
        .into_root_schema_for::<T>();
    schema.insert("title".to_owned(), format!("sockaccel {command}").into());
    Json { command, schema }
}

impl Json {
    /// `dump sockhash` is in `docs/schema/dump-sockhash.json`.
    pub fn file_name(&self) -> String {
        format!(
            "{}.json",
            self.command.replace(" --", " ").replace(' ', "-")
        )
    }

    /// The command without the option.
    pub fn page(&self) -> &'static str {
        self.command.split(" --").next().unwrap_or(self.command)
    }

    /// As the file holds it.
    pub fn text(&self) -> String {
        format!("{:#}\n", self.schema.as_value())
    }

    /// Name and meaning of each field; of an array those of its elements, of
    /// several kinds of objects those of all.
    pub fn fields(&self) -> Vec<(String, String)> {
        let root = self.schema.as_value();
        let object = match &root["items"] {
            Value::Null => root,
            items => resolve(root, items),
        };
        let kinds = object["anyOf"].as_array().into_iter().flatten();
        let objects = kinds.map(|kind| resolve(root, kind)).chain([object]);
        let mut found: Vec<(String, String)> = Vec::new();
        for (name, field) in objects.flat_map(properties) {
            let text = field["description"].as_str().unwrap_or_default();
            if found.iter().all(|(known, _)| known != name) {
                found.push((name.clone(), text.replace('\n', " ")));
            }
        }
        found
    }
}

fn properties(object: &Value) -> impl Iterator<Item = (&String, &Value)> {
    object["properties"].as_object().into_iter().flatten()
}

fn resolve<'a>(root: &'a Value, schema: &'a Value) -> &'a Value {
    match schema["$ref"].as_str().and_then(|r| r.strip_prefix('#')) {
        Some(pointer) => root.pointer(pointer).unwrap_or(schema),
        None => schema,
    }
}
