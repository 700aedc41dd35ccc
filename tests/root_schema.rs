//! What the commands really print with `--json` is what their schemas say, and
//! nothing besides.

mod common;

use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};
use tempfile::TempDir;

use common::cgroup::Cgroup;
use common::instance::Instance;
use common::pair::Pair;
use common::warm::warm_up;
use sockaccel::cli::outputs::all;

/// The arguments that make each command print, in an order in which they
/// work. PATH is a cgroup, FILE a file for apply.
const RUNS: &[(&str, &str)] = &[
    ("enable", "--cgroup PATH --allow fionread"),
    ("endpoint add", "10.0.0.7"),
    ("identity add", "10.1.0.0/16 7"),
    ("service add", "10.2.0.1:80"),
    ("policy add", "10.0.0.7 egress 7 tcp/80 allow"),
    ("status", ""),
    ("stats", ""),
    ("dump sockhash", ""),
    ("dump connections", ""),
    ("dump endpoints", ""),
    ("dump identities", ""),
    ("dump policy", ""),
    ("dump services", ""),
    ("dump config", ""),
    ("endpoint list", ""),
    ("endpoint get", "10.0.0.7"),
    ("identity list", ""),
    ("identity get", "10.1.2.3"),
    ("service list", ""),
    ("service get", "10.2.0.1:80"),
    ("policy list", ""),
    ("policy get", "10.0.0.7 egress 7 tcp/80"),
    ("export", ""),
    ("apply", "--dry-run -f FILE"),
    ("errors", "endpoint get 10.0.0.8"),
    ("policy del", "10.0.0.7 egress 7 tcp/80"),
    ("service del", "10.2.0.1:80"),
    ("identity del", "10.1.0.0/16"),
    ("endpoint del", "10.0.0.7"),
    ("disable", "--cgroup PATH"),
    ("bench", "--rounds 3 --seconds 0.05 --size 64"),
];

/// Reads [[name, schema, value], ...]; objects may have no other fields.
const VALIDATE: &str = r#"
import json, sys
from jsonschema import Draft202012Validator as Validator

def close(schema):
    if isinstance(schema, dict):
        if "properties" in schema:
            schema.setdefault("additionalProperties", False)
        for part in schema.values():
            close(part)
    elif isinstance(schema, list):
        for part in schema:
            close(part)

failed = False
for name, schema, value in json.load(sys.stdin):
    Validator.check_schema(schema)
    close(schema)
    for error in Validator(schema).iter_errors(value):
        failed = True
        print(f"{name}: {error.json_path}: {error.message}")
sys.exit(failed)
"#;

fn validate(cases: &Value, dir: &Path) -> (bool, String) {
    let input = dir.join("cases.json");
    fs::write(&input, cases.to_string()).expect("write");
    let output = Command::new("python3")
        .args(["-c", VALIDATE])
        .stdin(fs::File::open(&input).expect("open"))
        .output()
        .expect("python3, with python3-jsonschema, is needed");
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said).into_owned();
    (output.status.success(), said)
}

#[test]
fn outputs_are_what_their_schemas_say() {
    let dir = TempDir::new().expect("a directory");
    let cgroup = Cgroup::new("schema");
    let other = Cgroup::new("schema");
    let instance = Instance::enable(&other, &[]);
    let path = cgroup.path().display().to_string();
    let file = dir.path().join("apply.toml");
    fs::write(&file, format!("cgroups = [\"{path}\"]")).expect("write");
    let file = file.display().to_string();

    let joined = other.join();
    let pair = Pair::new();
    drop(joined);
    warm_up(&instance, &pair);

    let outputs = all();
    let mut cases = Vec::new();
    for output in &outputs {
        let known = RUNS.iter().any(|(command, _)| *command == output.command);
        assert!(known, "a line in RUNS for {}", output.command);
    }
    for (command, args) in RUNS {
        let output = outputs.iter().find(|output| output.command == *command);
        let schema = output.expect("registered").schema.as_value().clone();
        let typed = command.trim_start_matches("errors");
        let words: Vec<&str> = [typed, args, "--json"]
            .iter()
            .flat_map(|part| part.split_whitespace())
            .map(|word| match word {
                "PATH" => &*path,
                "FILE" => &*file,
                other => other,
            })
            .collect();
        let ran = instance.run(&words);
        let expected = if *command == "errors" {
            Some(1)
        } else {
            Some(0)
        };
        // A benchmark on a busy machine may say that it is.
        if *command != "bench" {
            assert_eq!(ran.code, expected, "{command}: {}", ran.stderr);
        }
        let value = ran.json();
        if let Some(rows) = value.as_array() {
            assert!(!rows.is_empty(), "{command}: an empty list proves nothing");
        }
        cases.push(json!([command, schema, value]));
    }
    let (good, said) = validate(&Value::Array(cases.clone()), dir.path());
    assert!(good, "{said}");
    // It would see a field too many and a field of another type.
    for (field, value) in [("surplus", json!(1)), ("instance", json!(1))] {
        let mut case = cases[0].clone();
        case[2][field] = value;
        let (good, said) = validate(&json!([case]), dir.path());
        assert!(!good && said.contains("enable: "), "{said}");
    }
}
