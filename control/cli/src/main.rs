//! `skep`: a kubectl-style command line for skep and any other Kubernetes cluster.
//!
//! A client like any other: it knows the API only through discovery, OpenAPI and the server's tables, so custom resources
//! work as built-in ones do. Read `session` for how requests are made and `target` for how objects are named.
#![forbid(unsafe_code)]

mod commands;
mod discovery;
mod files;
mod output;
mod session;
mod target;
mod terminal;

use std::{ffi::OsString, process::ExitCode};

use anyhow::Result;
use clap::{CommandFactory, Parser, Subcommand};

use crate::{
    commands::{
        certificate, config, create, datapath, debug, describe, diff, get, info, nodes, plugin,
        pods, proxy, trace, workloads, write,
    },
    session::{Global, Session},
    target::Selection,
};

/// Run a cluster of Linux machines.
///
/// skep [command] [type] [name] [flags]
#[derive(Parser)]
#[command(
    name = "skep",
    version,
    propagate_version = true,
    arg_required_else_help = true
)]
struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Get(get::Get),
    Describe(describe::Describe),
    Run(create::Run),
    Create(create::Create),
    Apply(write::Apply),
    Diff(diff::Diff),
    Replace(write::Replace),
    Patch(write::Patch),
    Delete(write::Delete),
    Edit(write::Edit),
    Expose(create::Expose),
    Scale(workloads::Scale),
    Autoscale(create::Autoscale),
    #[command(subcommand)]
    Set(workloads::Set),
    #[command(subcommand)]
    Rollout(workloads::Rollout),
    #[command(visible_alias = "log")]
    Logs(pods::Logs),
    Exec(pods::Exec),
    Attach(pods::Attach),
    Cp(pods::Cp),
    Debug(debug::Debug),
    PortForward(pods::PortForward),
    Proxy(proxy::Proxy),
    Wait(pods::Wait),
    /// Show events, oldest first
    Events {
        #[command(flatten)]
        selection: Selection,
        /// Only of TYPE/NAME
        #[arg(long = "for")]
        of: Option<String>,
    },
    /// Set (KEY=VALUE) and remove (KEY-) labels: skep label pod web tier=front
    Label(write::Metadata),
    /// Set (KEY=VALUE) and remove (KEY-) annotations
    Annotate(write::Metadata),
    Explain(info::Explain),
    ApiResources(info::ApiResources),
    /// List group/version pairs the server serves
    ApiVersions,
    /// Show where the control plane is
    ClusterInfo,
    /// Show the versions of this program and of the server
    Version {
        /// Only this program's
        #[arg(long)]
        client: bool,
        /// yaml or json
        #[arg(short, long)]
        output: Option<String>,
    },
    #[command(subcommand)]
    Config(config::Config),
    #[command(subcommand)]
    Auth(info::Auth),
    #[command(subcommand)]
    Certificate(certificate::Certificate),
    /// Take no new pods on nodes
    Cordon(nodes::NodeArgs),
    /// Take new pods on nodes again
    Uncordon(nodes::NodeArgs),
    Drain(nodes::Drain),
    Taint(nodes::Taint),
    #[command(subcommand)]
    Top(nodes::Top),
    Services(datapath::Services),
    Flows(datapath::Flows),
    Drops(datapath::Drops),
    Trace(trace::Trace),
    /// Print a completion script: source <(skep completion bash)
    Completion {
        shell: clap_complete::Shell,
    },
    #[command(subcommand)]
    Plugin(plugin::Plugin),
    /// A plugin's own command line.
    #[command(external_subcommand)]
    Other(Vec<OsString>),
}

#[tokio::main]
async fn main() -> ExitCode {
    let cli = Cli::parse();
    match run(cli).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            if let Some(exit) = error.downcast_ref::<pods::ExitCode>() {
                eprintln!("{error}");
                return ExitCode::from(u8::try_from(exit.0).unwrap_or(1));
            }
            if !error.is::<info::Refused>() && !error.is::<diff::Different>() {
                eprintln!("{}", message(&error));
            }
            ExitCode::FAILURE
        }
    }
}

/// What is printed for a failure: the server's words as they are, ours behind `error:`.
fn message(error: &anyhow::Error) -> String {
    let text = format!("{error:#}");
    let from_server = error.is::<session::ApiError>()
        || ["Error from server", "Unable to connect"]
            .iter()
            .any(|start| text.starts_with(start));
    if from_server {
        text
    } else {
        format!("error: {text}")
    }
}

async fn run(cli: Cli) -> Result<()> {
    let global = &cli.global;
    match cli.command {
        Command::Config(config) => return config.run(global),
        Command::Completion { shell } => {
            clap_complete::generate(shell, &mut Cli::command(), "skep", &mut std::io::stdout());
            return Ok(());
        }
        Command::Plugin(plugin) => return plugin.run(),
        Command::Other(words) => return plugin::become_plugin(&words),
        Command::Version {
            client: true,
            output,
        } => return info::version(None, output.as_deref()).await,
        _ => {}
    }
    let session = &Session::open(global).await?;
    match cli.command {
        Command::Get(get) => get.run(session, global).await,
        Command::Describe(describe) => describe.run(session, global).await,
        Command::Run(run) => run.run(session, global).await,
        Command::Create(create) => create.run(session, global).await,
        Command::Apply(apply) => apply.run(session, global).await,
        Command::Diff(diff) => diff.run(session, global).await,
        Command::Replace(replace) => replace.run(session, global).await,
        Command::Patch(patch) => patch.run(session, global).await,
        Command::Delete(delete) => delete.run(session, global).await,
        Command::Edit(edit) => edit.run(session, global).await,
        Command::Expose(expose) => expose.run(session, global).await,
        Command::Scale(scale) => scale.run(session, global).await,
        Command::Autoscale(autoscale) => autoscale.run(session, global).await,
        Command::Set(set) => set.run(session, global).await,
        Command::Rollout(rollout) => rollout.run(session, global).await,
        Command::Logs(logs) => logs.run(session).await,
        Command::Exec(exec) => exec.run(session).await,
        Command::Attach(attach) => attach.run(session).await,
        Command::Cp(cp) => cp.run(session).await,
        Command::Debug(debug) => debug.run(session).await,
        Command::PortForward(forward) => forward.run(session).await,
        Command::Proxy(proxy) => proxy.run(session).await,
        Command::Wait(wait) => wait.run(session, global).await,
        Command::Events { selection, of } => pods::events(session, &selection, of.as_deref()).await,
        Command::Label(label) => label.run(session, global, "labels", "labeled").await,
        Command::Annotate(annotate) => {
            annotate
                .run(session, global, "annotations", "annotated")
                .await
        }
        Command::Explain(explain) => explain.run(session).await,
        Command::ApiResources(list) => list.run(session).await,
        Command::ApiVersions => info::api_versions(session).await,
        Command::ClusterInfo => info::cluster_info(session).await,
        Command::Version { output, .. } => info::version(Some(session), output.as_deref()).await,
        Command::Certificate(certificate) => certificate.run(session).await,
        Command::Auth(auth) => auth.run(session).await,
        Command::Cordon(args) => nodes::cordon(session, &args, true).await,
        Command::Uncordon(args) => nodes::cordon(session, &args, false).await,
        Command::Drain(drain) => drain.run(session).await,
        Command::Taint(taint) => taint.run(session).await,
        Command::Top(top) => top.run(session).await,
        Command::Services(services) => services.run(session).await,
        Command::Flows(flows) => flows.run(session).await,
        Command::Drops(drops) => drops.run(session).await,
        Command::Trace(trace) => trace.run(session).await,
        Command::Config(_)
        | Command::Completion { .. }
        | Command::Plugin(_)
        | Command::Other(_) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }
}
