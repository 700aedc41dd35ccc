//! What the commands really print with `--json` is what their schemas say, and
//! nothing besides.

mod common;

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use serde_json::{Value, json};
use tempfile::TempDir;

use common::cgroup::Cgroup;
use common::deadline::Deadline;
use common::instance::{Instance, sockaccel};
use common::pair::Pair;
use common::process::Process;
use common::warm::{round_trip, warm_up};
use sockaccel::cli::outputs::all;

/// The arguments that make each command print, in an order in which they
/// work. PATH is a cgroup, FILE a file for apply, SUMMARY one to be written, PORT
/// that of a server.
const RUNS: &[(&str, &str)] = &[
    ("enable", "--cgroup PATH --allow fionread"),
    ("upgrade", ""),
    ("adopt", "--dry-run"),
    ("endpoint add", "10.0.0.7"),
    ("identity add", "10.1.0.0/16 7"),
    ("service add", "10.2.0.1:80"),
    ("policy add", "10.0.0.7 egress 7 tcp/80 allow"),
    ("status", ""),
    ("status --all", ""),
    ("doctor", "--allow fionread --timeout 60"),
    ("stats", ""),
    ("stats --watch", "0.2"),
    ("explain", "--port PORT"),
    ("assert", "--enrolled >=0 --for PORT"),
    ("events", ""),
    ("run", "--allow fionread --summary SUMMARY -- true"),
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
    ("bench", "--workload rr --rounds 3 --seconds 0.05 --size 64"),
];

/// Commands whose exit status depends on the machine, and how busy it is.
const VERDICTS: &[&str] = &["doctor", "bench"];

/// Commands that go on until they are ended, an object a line.
const ENDLESS: &[&str] = &["stats --watch", "events"];

/// Reads [[name, schema, value], ...]; objects may have no other fields. Where
/// one is described in parts, all parts together say which it has.
const VALIDATE: &str = r#"
import json, sys
from jsonschema import Draft202012Validator as Validator

def close(schema, is_part=False):
    if isinstance(schema, dict):
        closed = "properties" in schema and not is_part
        if closed:
            schema.setdefault("unevaluatedProperties", False)
        for key, value in schema.items():
            close(value, closed and key in ("allOf", "anyOf", "oneOf"))
    elif isinstance(schema, list):
        for part in schema:
            close(part, is_part)

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

/// The first line of a command that goes on, while connections come and go.
fn first_line(instance: &Instance, words: &[&str], cgroup: &Cgroup) -> String {
    let mut process = Process::start(
        Command::new(env!("CARGO_BIN_EXE_sockaccel"))
            .args(words)
            .args(["--instance", instance.name()])
            .stdout(Stdio::piped()),
    );
    let stdout = process.0.stdout.take().expect("a pipe");
    let reader = thread::spawn(move || {
        let mut line = String::new();
        BufReader::new(stdout).read_line(&mut line).map(|_| line)
    });
    let deadline = Deadline::seconds(60);
    while !reader.is_finished() {
        deadline.check("a line of its output");
        let joined = cgroup.join();
        let pair = Pair::new();
        round_trip(&pair);
        drop(joined);
        thread::sleep(Duration::from_millis(50));
    }
    drop(process);
    let line = reader.join().expect("no panic");
    line.expect("its output")
}

#[test]
fn outputs_are_what_their_schemas_say() {
    let dir = TempDir::new().expect("a directory");
    let cgroup = Cgroup::new("schema");
    let other = Cgroup::new("schema");
    let instance = Instance::enable(&other, &[]);
    let path = cgroup.path().display().to_string();
    let file = dir.path().join("apply.toml");
    let text = format!("cgroups = [\"{path}\"]\nallow = [\"fionread\"]");
    fs::write(&file, text).expect("write");
    let file = file.display().to_string();
    let summary = dir.path().join("summary.json").display().to_string();

    let joined = other.join();
    let pair = Pair::new();
    drop(joined);
    warm_up(&instance, &pair);
    let port = pair.client.peer_addr().expect("connected").port();
    let port = port.to_string();

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
        // First: what follows `--` is not for us.
        let words: Vec<&str> = ["--json", typed, args]
            .iter()
            .flat_map(|part| part.split_whitespace())
            .map(|word| match word {
                "PATH" => &*path,
                "FILE" => &*file,
                "SUMMARY" => &*summary,
                "PORT" => &*port,
                other => other,
            })
            .collect();
        if ENDLESS.contains(command) {
            let line = first_line(&instance, &words, &other);
            let value: Value = serde_json::from_str(&line).expect(&line);
            cases.push(json!([command, schema, value]));
            continue;
        }
        let ran = match *command {
            // Without a name it makes one of its own.
            "run" => sockaccel(&words),
            _ => instance.run(&words),
        };
        let expected = if *command == "errors" {
            Some(1)
        } else {
            Some(0)
        };
        if !VERDICTS.contains(command) {
            assert_eq!(ran.code, expected, "{command}: {}", ran.stderr);
        }
        let value = match *command {
            // Its output is that of its command.
            "run" => {
                let text = fs::read_to_string(&summary).expect("a summary");
                serde_json::from_str(&text).expect(&text)
            }
            _ => ran.json(),
        };
        if let Some(rows) = value.as_array() {
            assert!(!rows.is_empty(), "{command}: an empty list proves nothing");
        }
        cases.push(json!([command, schema, value]));
    }
    let (good, said) = validate(&Value::Array(cases.clone()), dir.path());
    assert!(good, "{said}");
    // It would see a field of another type, and of every output a field too many.
    let mut case = cases[0].clone();
    case[2]["instance"] = json!(1);
    let (good, said) = validate(&json!([case]), dir.path());
    assert!(!good && said.contains("enable: "), "{said}");
    for case in &mut cases {
        let object = match &mut case[2] {
            Value::Array(rows) => &mut rows[0],
            object => object,
        };
        object["surplus"] = json!(1);
        // One of those that are described in parts.
        if let Some(feature) = object.pointer_mut("/features/0") {
            feature["surplus"] = json!(1);
        }
    }
    let (_, said) = validate(&Value::Array(cases.clone()), dir.path());
    for case in &cases {
        let name = case[0].as_str().expect("a name");
        assert!(said.contains(&format!("{name}: $")), "{name}\n{said}");
    }
    assert!(said.contains("doctor: $.features[0]: "), "{said}");
}
