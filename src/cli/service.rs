//! `service`: destinations that stay on the stack, unless marked.

use clap::Subcommand;
use schemars::JsonSchema;
use serde::Serialize;

use super::Context;
use super::addr::end;
use super::entry::{IfExists, absent, add, del, explain_empty, finish};
use crate::error::Result;
use crate::maps::Table;
use crate::maps::layout::{Service, ServiceKey};
use crate::output::{table, yes_or_no};
use crate::state::{Change, Instance};
use crate::words::ServiceName;

/// What can be done with services.
#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Declare a virtual address
    #[command(after_help = "Example:  sockaccel service add 10.96.0.1:443 --accelerate")]
    Add {
        /// The virtual address
        #[arg(value_name = "VIP:PORT[/tcp]")]
        service: ServiceName,
        /// Accelerate its connections, through any translation
        #[arg(long)]
        accelerate: bool,
    },
    /// Forget a virtual address
    #[command(
        visible_alias = "delete",
        after_help = "Example:  sockaccel service del 10.96.0.1:443"
    )]
    Del {
        /// The virtual address
        #[arg(value_name = "VIP:PORT[/tcp]")]
        service: ServiceName,
        #[command(flatten)]
        if_exists: IfExists,
    },
    /// All services
    #[command(visible_aliases = ["show", "ls"])]
    List,
    /// One service
    #[command(after_help = "Example:  sockaccel service get 10.96.0.1:443")]
    Get {
        /// The virtual address
        #[arg(value_name = "VIP:PORT[/tcp]")]
        service: ServiceName,
    },
}

/// A service, as `list` and `get` show it.
#[derive(Debug, Serialize, JsonSchema)]
pub struct Row {
    /// Address and port.
    service: String,
    /// `tcp`.
    protocol: &'static str,
    /// Accelerated, not left to the stack.
    accelerate: bool,
    /// Connections that met this entry.
    connections: u64,
}

impl Row {
    pub(super) fn new(key: ServiceKey, service: Service) -> Self {
        Self {
            service: end(key.addr, key.port).to_string(),
            protocol: "tcp",
            accelerate: service.accelerate > 0,
            connections: service.connections,
        }
    }
}

/// Runs the verb.
pub fn run(context: &Context, verb: &Verb) -> Result<()> {
    match verb {
        Verb::Add {
            service,
            accelerate,
        } => {
            let instance = Instance::open_to_write(&context.place)?;
            let services: Table<ServiceKey, Service> = instance.table("sa_services")?;
            let value = Service {
                accelerate: u32::from(*accelerate),
                pad: 0,
                connections: 0,
            };
            let key = ServiceKey::from(*service);
            let change = add(
                &services,
                services.get(&key)?,
                &key,
                &value,
                format!("service {service}"),
                |old| old.accelerate == value.accelerate,
            )?;
            finish(context, &instance, Ok(change))?;
            if *accelerate {
                say_new_only(context, change);
            }
            Ok(())
        }
        Verb::Del { service, if_exists } => {
            let instance = Instance::open_to_write(&context.place)?;
            let services: Table<ServiceKey, Service> = instance.table("sa_services")?;
            let change = del(
                &services,
                &(*service).into(),
                format!("service {service}"),
                if_exists,
            )?;
            finish(context, &instance, Ok(change))?;
            say_new_only(context, change);
            Ok(())
        }
        Verb::List => {
            let instance = Instance::open(&context.place)?;
            let mut rows: Vec<Row> = instance
                .table("sa_services")?
                .entries()?
                .into_iter()
                .map(|(key, service)| Row::new(key, service))
                .collect();
            rows.sort_by(|a, b| a.service.cmp(&b.service));
            drop(instance);
            explain_empty(context, &rows, "services", "service add VIP:PORT");
            context.output.print(&rows, || to_table(&rows))
        }
        Verb::Get { service } => {
            let instance = Instance::open(&context.place)?;
            let services: Table<ServiceKey, Service> = instance.table("sa_services")?;
            let key = ServiceKey::from(*service);
            let found = services
                .get(&key)?
                .ok_or_else(|| absent(format!("service {service}")))?;
            let row = Row::new(key, found);
            context
                .output
                .print(&row, || to_table(std::slice::from_ref(&row)))
        }
    }
}

/// A service's connections are skipped when they are established, and a socket
/// can be enrolled only then.
fn say_new_only(context: &Context, change: Change) {
    if change == Change::Done {
        context.output.note(
            "Connections that stayed on the stack so far stay there; new ones are accelerated.",
        );
    }
}

fn to_table(rows: &[Row]) -> String {
    table(
        &["service", "protocol", "accelerate", "connections"],
        rows.iter().map(|row| {
            [
                row.service.clone(),
                row.protocol.to_owned(),
                yes_or_no(row.accelerate),
                row.connections.to_string(),
            ]
        }),
    )
}
