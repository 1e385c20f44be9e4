//! The files of an image as a volume.
//!
//! The runtime gives the image as `docker save` writes it: `manifest.json` names the layers, each
//! an archive of its own, and `.wh.NAME` in a layer takes NAME of the layers below away (OCI image
//! specification, layer.md).

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{self, Seek, SeekFrom, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Component, Path, PathBuf};

use bytes::Bytes;
use flate2::read::GzDecoder;
use futures::StreamExt;
use serde::Deserialize;

use crate::runtime::{BoxStream, RuntimeError};

#[derive(Deserialize)]
struct Manifest {
    #[serde(rename = "Layers")]
    layers: Vec<String>,
}

/// Says that the volume is complete; beside it, not in it.
fn mark(volume: &Path) -> PathBuf {
    let mut name = volume.as_os_str().to_owned();
    name.push(".complete");
    name.into()
}

pub(super) async fn unpack(
    volume: &Path,
    mut archive: BoxStream<Result<Bytes, RuntimeError>>,
) -> io::Result<()> {
    if mark(volume).exists() {
        return Ok(());
    }
    let mut file = tempfile::tempfile()?;
    while let Some(piece) = archive.next().await {
        file.write_all(&piece.map_err(io::Error::other)?)?;
    }
    let volume = volume.to_path_buf();
    tokio::task::spawn_blocking(move || {
        match fs::remove_dir_all(&volume) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
        fs::create_dir_all(&volume)?;
        layers(&file, &volume)?;
        fs::write(mark(&volume), "")
    })
    .await
    .map_err(io::Error::other)?
}

fn layers(archive: &File, volume: &Path) -> io::Result<()> {
    // By name: where its bytes are. Links are layers that several images share.
    let mut members: HashMap<PathBuf, (u64, u64)> = HashMap::new();
    let mut links: HashMap<PathBuf, PathBuf> = HashMap::new();
    let mut reader = archive;
    reader.seek(SeekFrom::Start(0))?;
    for entry in tar::Archive::new(reader).entries_with_seek()? {
        let entry = entry?;
        let path = entry.path()?.into_owned();
        match entry.link_name()? {
            Some(target) => {
                let parent = path.parent().unwrap_or(Path::new(""));
                let target = match entry.header().entry_type() {
                    tar::EntryType::Symlink => flatten(&parent.join(target)),
                    _ => target.into_owned(),
                };
                links.insert(path, target);
            }
            None => {
                members.insert(path, (entry.raw_file_position(), entry.size()));
            }
        }
    }
    let open = |name: &Path| -> io::Result<io::Take<File>> {
        let name = links.get(name).map_or(name, PathBuf::as_path);
        let (at, size) = *members
            .get(name)
            .ok_or_else(|| io::Error::other(format!("the image lacks {}", name.display())))?;
        let mut file = archive.try_clone()?;
        file.seek(SeekFrom::Start(at))?;
        Ok(io::Read::take(file, size))
    };
    let manifests: Vec<Manifest> = serde_json::from_reader(open(Path::new("manifest.json"))?)?;
    let manifest = manifests
        .first()
        .ok_or_else(|| io::Error::other("the image has no manifest"))?;
    for name in &manifest.layers {
        let mut layer = open(Path::new(name))?;
        let mut magic = [0; 2];
        io::Read::read(&mut layer, &mut magic)?;
        let layer = open(Path::new(name))?;
        match magic {
            [0x1f, 0x8b] => apply(GzDecoder::new(layer), volume)?,
            _ => apply(layer, volume)?,
        }
    }
    Ok(())
}

/// Without `..`: as a link inside the archive is meant.
fn flatten(path: &Path) -> PathBuf {
    let mut out = PathBuf::new();
    for part in path.components() {
        match part {
            Component::Normal(name) => out.push(name),
            Component::ParentDir => {
                out.pop();
            }
            _ => {}
        }
    }
    out
}

fn apply(layer: impl io::Read, volume: &Path) -> io::Result<()> {
    let mut archive = tar::Archive::new(layer);
    archive.set_preserve_permissions(true);
    archive.set_overwrite(true);
    for entry in archive.entries()? {
        let mut entry = entry?;
        let path = flatten(&entry.path()?);
        let name = path
            .file_name()
            .and_then(|n| n.to_str())
            .unwrap_or_default();
        let parent = path.parent().unwrap_or(Path::new(""));
        if name == ".wh..wh..opq" {
            let folder = inside(volume, parent)?;
            for old in fs::read_dir(&folder).into_iter().flatten() {
                remove(&old?.path())?;
            }
        } else if let Some(hidden) = name.strip_prefix(".wh.") {
            remove(&inside(volume, parent)?.join(hidden))?;
        } else {
            let kind = entry.header().entry_type();
            if !kind.is_dir()
                && let Ok(there) = inside(volume, parent)
            {
                remove(&there.join(name))?;
            }
            // Refuses what would leave the volume.
            if entry.unpack_in(volume)? {
                own(&entry, &volume.join(&path))?;
            }
        }
    }
    Ok(())
}

/// As the image says; a field that is left blank means root. Files take their mode after that: a
/// change of the owner takes set-uid bits away.
fn own<R: io::Read>(entry: &tar::Entry<'_, R>, path: &Path) -> io::Result<()> {
    let id = |field: io::Result<u64>| u32::try_from(field.unwrap_or(0)).unwrap_or(0);
    let header = entry.header();
    let (user, group) = (id(header.uid()), id(header.gid()));
    std::os::unix::fs::lchown(path, Some(user), Some(group))?;
    if fs::symlink_metadata(path)?.is_symlink() {
        return Ok(());
    }
    let mode = header.mode().unwrap_or(0o755) & 0o7777;
    fs::set_permissions(path, fs::Permissions::from_mode(mode))
}

/// A folder of the volume that no symlink leads out of.
fn inside(volume: &Path, folder: &Path) -> io::Result<PathBuf> {
    let root = fs::canonicalize(volume)?;
    let real = fs::canonicalize(volume.join(folder))?;
    match real.starts_with(&root) {
        true => Ok(real),
        false => Err(io::Error::other(format!(
            "{} leaves the volume",
            folder.display()
        ))),
    }
}

fn remove(path: &Path) -> io::Result<()> {
    match fs::symlink_metadata(path) {
        Err(_) => Ok(()),
        Ok(meta) if meta.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tar(files: &[(&str, &[u8])]) -> Vec<u8> {
        let mut builder = tar::Builder::new(Vec::new());
        for (name, content) in files {
            let mut header = tar::Header::new_gnu();
            header.set_size(content.len() as u64);
            header.set_mode(0o644);
            header.set_uid(nix::unistd::geteuid().as_raw().into());
            header.set_gid(nix::unistd::getegid().as_raw().into());
            builder.append_data(&mut header, name, *content).unwrap();
        }
        builder.into_inner().unwrap()
    }

    #[tokio::test]
    async fn later_layers_change_and_hide_earlier_ones() {
        let first = tar(&[("d/a", b"1"), ("d/b", b"2"), ("c", b"3")]);
        let second = tar(&[("d/.wh.a", b""), ("c", b"4")]);
        let image = tar(&[
            (
                "manifest.json",
                br#"[{"Layers": ["1/layer.tar", "2/layer.tar"]}]"#,
            ),
            ("2/layer.tar", &second),
            ("1/layer.tar", &first),
        ]);
        let dir = tempfile::tempdir().unwrap();
        let volume = dir.path().join("v");
        let pieces: Vec<Result<Bytes, RuntimeError>> = image
            .chunks(1000)
            .map(|c| Ok(Bytes::copy_from_slice(c)))
            .collect();
        unpack(&volume, Box::pin(futures::stream::iter(pieces)))
            .await
            .unwrap();
        assert!(!volume.join("d/a").exists());
        assert_eq!(fs::read_to_string(volume.join("d/b")).unwrap(), "2");
        assert_eq!(fs::read_to_string(volume.join("c")).unwrap(), "4");
        // Complete: the archive is not asked for again.
        unpack(&volume, Box::pin(futures::stream::empty()))
            .await
            .unwrap();
        assert_eq!(fs::read_to_string(volume.join("c")).unwrap(), "4");
    }
}
