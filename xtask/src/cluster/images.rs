//! Images for the quick start and the tests, made from Debian packages: no registry is asked.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::Path;

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

use crate::command::{line, program};
use crate::{progress, setup, workspace};

/// nginx, with a shell. `/` is a page that names the version, `/whoami` says who answers whom, `/quiet` writes no log.
pub const NGINX: &str = "skep.local/nginx:1";
/// The same with another page, for updates.
pub const NGINX_NEXT: &str = "skep.local/nginx:2";
/// A shell and the usual small programs.
pub const BUSYBOX: &str = "skep.local/busybox:1";

const NGINX_PACKAGES: [&str; 8] = [
    "nginx",
    "libc6",
    "libcrypt1",
    "libpcre2-8-0",
    "libssl3",
    "zlib1g",
    // For programs in Rust that tests mount into the container.
    "libgcc-s1",
    "busybox-static",
];

/// What an image of a web server has no use for.
const UNUSED: [&str; 7] = [
    "usr/share/doc",
    "usr/share/man",
    "usr/share/lintian",
    "usr/share/locale",
    "usr/lib/x86_64-linux-gnu/gconv",
    "usr/lib/systemd",
    "lib/systemd",
];

const NGINX_CONFIGURATION: &str = r#"
user www-data;
worker_processes 1;
daemon off;
pid /run/nginx.pid;
error_log stderr notice;
events { worker_connections 8192; }
http {
    default_type text/html;
    keepalive_requests 100000000;
    keepalive_timeout 1h;
    access_log /dev/stdout;
    server {
        listen 80;
        listen [::]:80;
        root /usr/share/nginx/html;
        location = /whoami {
            default_type text/plain;
            return 200 "$hostname $server_addr $remote_addr\n";
        }
        location = /quiet {
            access_log off;
            default_type text/plain;
            return 200 "ok\n";
        }
    }
}
"#;

const USERS: &str = "root:x:0:0:root:/root:/bin/sh\nwww-data:x:33:33:www-data:/var/www:/bin/false\nnobody:x:65534:65534:nobody:/:/bin/false\n";
const GROUPS: &str = "root:x:0:\nwww-data:x:33:\nnogroup:x:65534:\n";

/// Of what is in the images; raised with every change, so that older ones are made anew.
const VERSION: &str = "2";
const VERSION_LABEL: &str = "skep.version";

/// Makes the images that Docker does not have yet; starts Docker if it does not run.
pub fn ensure() -> Result<()> {
    setup::docker::start()?;
    let label = format!("{{{{index .Config.Labels \"{VERSION_LABEL}\"}}}}");
    let missing = |image: &str| {
        let found = program("docker")
            .args(["image", "inspect", "--format", &label, image])
            .output();
        found.ok().is_none_or(|version| version.trim() != VERSION)
    };
    if ![NGINX, NGINX_NEXT, BUSYBOX].into_iter().any(missing) {
        return Ok(());
    }
    progress::step(
        "making the images of the quick start from Debian packages",
        || {
            let scratch = workspace::root().join("target/images");
            if scratch.exists() {
                fs::remove_dir_all(&scratch)?;
            }
            let nginx = scratch.join("nginx");
            setup::unpack(&NGINX_PACKAGES, &nginx)?;
            base(&nginx)?;
            for unused in UNUSED {
                let _ = fs::remove_dir_all(nginx.join(unused));
            }
            for folder in ["etc/nginx", "var/log/nginx", "var/lib/nginx", "run"] {
                fs::create_dir_all(nginx.join(folder))?;
            }
            fs::write(nginx.join("etc/nginx/nginx.conf"), NGINX_CONFIGURATION)?;
            let served = json!({
                "Cmd": ["/usr/sbin/nginx"],
                "ExposedPorts": {"80/tcp": {}},
                // Finish the requests at hand, as the official image does.
                "StopSignal": "SIGQUIT",
            });
            for (image, version) in [(NGINX, 1), (NGINX_NEXT, 2)] {
                page(&nginx, version)?;
                load(&nginx, image, &served)?;
            }

            let busybox = scratch.join("busybox");
            fs::create_dir_all(busybox.join("bin"))?;
            fs::copy(nginx.join("bin/busybox"), busybox.join("bin/busybox"))?;
            base(&busybox)?;
            load(&busybox, BUSYBOX, &json!({"Cmd": ["sh"]}))?;
            fs::remove_dir_all(&scratch)?;
            Ok(())
        },
    )
}

/// Removes them from Docker.
pub fn remove() {
    for image in [NGINX, NGINX_NEXT, BUSYBOX] {
        let _ = line(&format!("docker rmi --force {image}")).succeeds();
    }
}

fn page(root: &Path, version: u32) -> Result<()> {
    let folder = root.join("usr/share/nginx/html");
    fs::create_dir_all(&folder)?;
    fs::write(
        folder.join("index.html"),
        format!(
            "<html><head><title>nginx on skep</title></head><body><h1>nginx version {version}</h1></body></html>\n"
        ),
    )?;
    Ok(())
}

/// A shell with its applets, users, and the folders that programs expect.
fn base(root: &Path) -> Result<()> {
    for folder in ["bin", "etc", "tmp", "root", "proc", "sys", "dev", "var/www"] {
        fs::create_dir_all(root.join(folder))?;
    }
    fs::set_permissions(root.join("tmp"), fs::Permissions::from_mode(0o1777))?;
    fs::write(root.join("etc/passwd"), USERS)?;
    fs::write(root.join("etc/group"), GROUPS)?;
    let applets = program(root.join("bin/busybox"))
        .arg("--list")
        .output()
        .context("busybox-static does not run")?;
    for applet in applets.lines().filter(|applet| *applet != "busybox") {
        let file = root.join("bin").join(applet);
        if !file.exists() {
            symlink("busybox", &file)?;
        }
    }
    Ok(())
}

/// Gives Docker an image of one layer, in the form of `docker save`. (`docker import` cannot set a stop signal.)
fn load(root: &Path, image: &str, settings: &Value) -> Result<()> {
    let folder = root.with_extension("image");
    fs::create_dir_all(&folder)?;
    program("tar")
        .args([
            "--owner=0",
            "--group=0",
            "--numeric-owner",
            "--create",
            "--file",
        ])
        .arg(folder.join("layer.tar"))
        .arg("--directory")
        .arg(root)
        .arg(".")
        .output()?;
    let sum = program("sha256sum")
        .arg(folder.join("layer.tar"))
        .output()?;
    let digest = sum
        .split_whitespace()
        .next()
        .context("sha256sum printed nothing")?;
    let mut config = settings.clone();
    config["Labels"] = json!({VERSION_LABEL: VERSION});
    config["Env"] = json!(["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"]);
    let description = json!({
        "architecture": if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" },
        "os": "linux",
        "config": config,
        "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{digest}")]},
    });
    let manifest = json!([{"Config": "config.json", "RepoTags": [image], "Layers": ["layer.tar"]}]);
    fs::write(folder.join("config.json"), description.to_string())?;
    fs::write(folder.join("manifest.json"), manifest.to_string())?;
    let archive = root.with_extension("tar");
    program("tar")
        .args(["--create", "--file"])
        .arg(&archive)
        .arg("--directory")
        .arg(&folder)
        .args(["manifest.json", "config.json", "layer.tar"])
        .output()?;
    program("docker")
        .args(["load", "--quiet", "--input"])
        .arg(&archive)
        .output()?;
    fs::remove_dir_all(folder)?;
    fs::remove_file(archive)?;
    Ok(())
}
