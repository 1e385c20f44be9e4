//! Volume sources and claims.

use k8s_openapi::api::core::v1::{
    EmptyDirVolumeSource, PersistentVolumeClaim, PersistentVolumeClaimSpec, ProjectedVolumeSource,
    Volume,
};

use crate::zero::{fill, set};

const MODE: i32 = 0o644;
const TOKEN_SECONDS: i64 = 3600;

pub fn set_volume_defaults(volume: &mut Volume) {
    if has_no_source(volume) {
        volume.empty_dir = Some(EmptyDirVolumeSource::default());
    }
    if let Some(image) = &mut volume.image {
        let policy = super::pod_spec::pull_policy(image.reference.as_deref().unwrap_or(""));
        fill(&mut image.pull_policy, policy);
    }
    if let Some(secret) = &mut volume.secret {
        set(&mut secret.default_mode, MODE);
    }
    if let Some(config_map) = &mut volume.config_map {
        set(&mut config_map.default_mode, MODE);
    }
    if let Some(downward) = &mut volume.downward_api {
        set(&mut downward.default_mode, MODE);
        for file in downward.items.iter_mut().flatten() {
            if let Some(field) = &mut file.field_ref {
                fill(&mut field.api_version, "v1");
            }
            if let Some(resource) = &mut file.resource_field_ref {
                super::pod_spec::set_divisor(resource);
            }
        }
    }
    if let Some(projected) = &mut volume.projected {
        set_projected_defaults(projected);
    }
    if let Some(host_path) = &mut volume.host_path {
        set(&mut host_path.type_, String::new());
    }
    if let Some(iscsi) = &mut volume.iscsi {
        fill(&mut iscsi.iscsi_interface, "default");
    }
    if let Some(rbd) = &mut volume.rbd {
        fill(&mut rbd.pool, "rbd");
        fill(&mut rbd.user, "admin");
        fill(&mut rbd.keyring, "/etc/ceph/keyring");
    }
    if let Some(disk) = &mut volume.azure_disk {
        set(&mut disk.caching_mode, "ReadWrite".to_owned());
        set(&mut disk.kind, "Shared".to_owned());
        set(&mut disk.fs_type, "ext4".to_owned());
        set(&mut disk.read_only, false);
    }
    if let Some(scale_io) = &mut volume.scale_io {
        fill(&mut scale_io.storage_mode, "ThinProvisioned");
        fill(&mut scale_io.fs_type, "xfs");
    }
    let template = volume
        .ephemeral
        .as_mut()
        .and_then(|ephemeral| ephemeral.volume_claim_template.as_mut());
    if let Some(template) = template {
        set_claim_spec_defaults(&mut template.spec);
    }
}

fn has_no_source(volume: &Volume) -> bool {
    let nothing = Volume {
        name: volume.name.clone(),
        ..Volume::default()
    };
    *volume == nothing
}

fn set_projected_defaults(projected: &mut ProjectedVolumeSource) {
    set(&mut projected.default_mode, MODE);
    for source in projected.sources.iter_mut().flatten() {
        if let Some(token) = &mut source.service_account_token {
            set(&mut token.expiration_seconds, TOKEN_SECONDS);
        }
        let files = source
            .downward_api
            .as_mut()
            .and_then(|downward| downward.items.as_mut());
        for file in files.into_iter().flatten() {
            if let Some(field) = &mut file.field_ref {
                fill(&mut field.api_version, "v1");
            }
            if let Some(resource) = &mut file.resource_field_ref {
                super::pod_spec::set_divisor(resource);
            }
        }
        if let Some(certificate) = &mut source.pod_certificate {
            set(&mut certificate.max_expiration_seconds, 86400);
        }
    }
}

pub fn set_claim_spec_defaults(spec: &mut PersistentVolumeClaimSpec) {
    set(&mut spec.volume_mode, "Filesystem".to_owned());
    if let Some(resources) = &mut spec.resources {
        super::pod_spec::round_up(resources.limits.as_mut());
        super::pod_spec::round_up(resources.requests.as_mut());
    }
}

pub fn set_claim_defaults(claim: &mut PersistentVolumeClaim) {
    set_claim_spec_defaults(claim.spec.get_or_insert_default());
    fill(&mut claim.status.get_or_insert_default().phase, "Pending");
}
