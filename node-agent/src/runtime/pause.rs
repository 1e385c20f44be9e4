//! The pause image: one static program of a few hundred bytes, made here, never pulled.
//!
//! A sandbox must outlive its containers and hold their namespaces, so its program does nothing
//! but wait. As process 1 of a shared PID namespace it also has to collect orphans, and it must
//! end on SIGTERM at once. `pause /netns` first moves itself into the network namespace of that
//! file: this is how a hostNetwork pod gets the *node's* network where the node is a namespace and
//! Docker's own "host" network would be another one.
//!
//! The machine code stands here with its assembly instead of being compiled by a build script: it
//! needs no cross compiler, libc or target that a clean machine lacks, and its bytes are the same
//! everywhere, so the image id is too.

use sha2::{Digest, Sha256};

/// Where a namespace file is mounted for a sandbox that must enter it.
pub const NETNS_PATH: &str = "/netns";
/// Its tag says which program is inside; raise it when the program changes.
pub const IMAGE: &str = "skep/pause:1";

/// Blocks SIGHUP, SIGINT, SIGTERM and SIGCHLD and waits for them with `rt_sigtimedwait`: blocked
/// signals are queued even for process 1 (kernel/signal.c, `sig_ignored`), which saves the signal
/// handlers and their trampolines.
#[rustfmt::skip]
const X86_64: &[u8] = &[
    0x4c, 0x8b, 0x24, 0x24,                   // 00       mov  r12, [rsp]        argc
    0x4c, 0x8b, 0x6c, 0x24, 0x10,             // 04       mov  r13, [rsp+16]     argv[1]
    0xb8, 0x03, 0x40, 0x01, 0x00,             // 09       mov  eax, 0x14003      the four signals
    0x50,                                     // 0e       push rax
    0x48, 0x89, 0xe5,                         // 0f       mov  rbp, rsp          &mask
    0xb8, 0x0e, 0x00, 0x00, 0x00,             // 12       mov  eax, 14           rt_sigprocmask(
    0x31, 0xff,                               // 17       xor  edi, edi            SIG_BLOCK,
    0x48, 0x89, 0xee,                         // 19       mov  rsi, rbp            &mask,
    0x31, 0xd2,                               // 1c       xor  edx, edx            NULL,
    0x41, 0xba, 0x08, 0x00, 0x00, 0x00,       // 1e       mov  r10d, 8             8)
    0x0f, 0x05,                               // 24       syscall
    0x49, 0x83, 0xfc, 0x02,                   // 26       cmp  r12, 2
    0x72, 0x28,                               // 2a       jb   wait              no argument
    0xb8, 0x02, 0x00, 0x00, 0x00,             // 2c       mov  eax, 2            open(
    0x4c, 0x89, 0xef,                         // 31       mov  rdi, r13            argv[1],
    0xbe, 0x00, 0x00, 0x08, 0x00,             // 34       mov  esi, 0x80000        O_RDONLY|O_CLOEXEC,
    0x31, 0xd2,                               // 39       xor  edx, edx            0)
    0x0f, 0x05,                               // 3b       syscall
    0x89, 0xc7,                               // 3d       mov  edi, eax          setns(fd,
    0xb8, 0x34, 0x01, 0x00, 0x00,             // 3f       mov  eax, 308
    0xbe, 0x00, 0x00, 0x00, 0x40,             // 44       mov  esi, 0x40000000     CLONE_NEWNET)
    0x0f, 0x05,                               // 49       syscall
    0x85, 0xc0,                               // 4b       test eax, eax
    0xbf, 0x01, 0x00, 0x00, 0x00,             // 4d       mov  edi, 1            exit(1) on failure
    0x75, 0x3d,                               // 52       jne  exit
    0xb8, 0x80, 0x00, 0x00, 0x00,             // 54 wait: mov  eax, 128          rt_sigtimedwait(
    0x48, 0x89, 0xef,                         // 59       mov  rdi, rbp            &mask,
    0x31, 0xf6,                               // 5c       xor  esi, esi            NULL,
    0x31, 0xd2,                               // 5e       xor  edx, edx            NULL,
    0x41, 0xba, 0x08, 0x00, 0x00, 0x00,       // 60       mov  r10d, 8             8)
    0x0f, 0x05,                               // 66       syscall
    0x85, 0xc0,                               // 68       test eax, eax
    0x78, 0xe8,                               // 6a       js   wait              interrupted
    0x83, 0xf8, 0x11,                         // 6c       cmp  eax, 17           SIGCHLD?
    0x75, 0x1e,                               // 6f       jne  done
    0xb8, 0x3d, 0x00, 0x00, 0x00,             // 71 reap: mov  eax, 61           wait4(
    0x48, 0xc7, 0xc7, 0xff, 0xff, 0xff, 0xff, // 76       mov  rdi, -1             -1,
    0x31, 0xf6,                               // 7d       xor  esi, esi            NULL,
    0xba, 0x01, 0x00, 0x00, 0x00,             // 7f       mov  edx, 1              WNOHANG,
    0x45, 0x31, 0xd2,                         // 84       xor  r10d, r10d          NULL)
    0x0f, 0x05,                               // 87       syscall
    0x85, 0xc0,                               // 89       test eax, eax
    0x7f, 0xe4,                               // 8b       jg   reap              one more?
    0xeb, 0xc5,                               // 8d       jmp  wait
    0x31, 0xff,                               // 8f done: xor  edi, edi
    0xb8, 0x3c, 0x00, 0x00, 0x00,             // 91 exit: mov  eax, 60           exit(edi)
    0x0f, 0x05,                               // 96       syscall
];

/// ELF `e_machine` and the code, by Rust's name of the architecture.
fn program(arch: &str) -> Option<(u16, &'static [u8])> {
    match arch {
        "x86_64" => Some((62, X86_64)),
        _ => None,
    }
}

/// A static executable with one segment: the headers and the code, mapped read-only and
/// executable. See elf(5).
fn elf(machine: u16, code: &[u8]) -> Vec<u8> {
    const BASE: u64 = 0x40_0000;
    const HEADERS: u64 = 64 + 56;
    let size = HEADERS + code.len() as u64;
    let mut out = Vec::with_capacity(size as usize);
    out.extend([0x7f, b'E', b'L', b'F', 2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    out.extend(2u16.to_le_bytes()); // ET_EXEC
    out.extend(machine.to_le_bytes());
    out.extend(1u32.to_le_bytes());
    out.extend((BASE + HEADERS).to_le_bytes()); // entry
    out.extend(64u64.to_le_bytes()); // program headers
    out.extend(0u64.to_le_bytes()); // no section headers
    out.extend(0u32.to_le_bytes());
    for half in [64u16, 56, 1, 64, 0, 0] {
        out.extend(half.to_le_bytes());
    }
    out.extend(1u32.to_le_bytes()); // PT_LOAD
    out.extend(5u32.to_le_bytes()); // readable, executable
    for word in [0, BASE, BASE, size, size, 0x1000] {
        out.extend(word.to_le_bytes());
    }
    out.extend(code);
    out
}

/// The image as `docker load` takes it. `None` on an architecture without a program.
pub fn image_archive(arch: &str) -> Option<Vec<u8>> {
    let (machine, code) = program(arch)?;
    let layer = tar(&[("pause", 0o755, &elf(machine, code))]);
    let config = serde_json::json!({
        "architecture": if arch == "x86_64" { "amd64" } else { arch },
        "os": "linux",
        "config": {"Entrypoint": ["/pause"]},
        "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{}", hex(&Sha256::digest(&layer)))]},
    })
    .to_string();
    let config_name = format!("{}.json", hex(&Sha256::digest(config.as_bytes())));
    let manifest = serde_json::json!([
        {"Config": config_name, "RepoTags": [IMAGE], "Layers": ["layer.tar"]}
    ])
    .to_string();
    Some(tar(&[
        ("manifest.json", 0o644, manifest.as_bytes()),
        (&config_name, 0o644, config.as_bytes()),
        ("layer.tar", 0o644, &layer),
    ]))
}

fn tar(files: &[(&str, u32, &[u8])]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (name, mode, content) in files {
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(*mode);
        header.set_mtime(0);
        builder
            .append_data(&mut header, name, *content)
            .expect("writing to memory does not fail");
    }
    builder
        .into_inner()
        .expect("writing to memory does not fail")
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;
    use std::process::Command;

    fn pause() -> (tempfile::TempDir, std::path::PathBuf) {
        let (machine, code) = program(std::env::consts::ARCH).expect("this architecture");
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pause");
        std::fs::write(&path, elf(machine, code)).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        (dir, path)
    }

    #[test]
    fn it_waits_until_it_is_told_to_end() {
        let (_dir, path) = pause();
        let mut child = Command::new(path).spawn().unwrap();
        std::thread::sleep(std::time::Duration::from_millis(50));
        assert!(child.try_wait().unwrap().is_none(), "it must wait");
        let pid = nix::unistd::Pid::from_raw(child.id() as i32);
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGCHLD).unwrap();
        std::thread::sleep(std::time::Duration::from_millis(50));
        assert!(
            child.try_wait().unwrap().is_none(),
            "SIGCHLD must not end it"
        );
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
        assert_eq!(child.wait().unwrap().code(), Some(0));
    }

    #[test]
    fn a_namespace_that_is_none_fails_at_once() {
        let (_dir, path) = pause();
        assert_eq!(
            Command::new(&path).arg("/nowhere").status().unwrap().code(),
            Some(1)
        );
    }

    #[test]
    fn the_image_is_the_same_every_time() {
        assert_eq!(
            image_archive(std::env::consts::ARCH),
            image_archive(std::env::consts::ARCH)
        );
    }
}
