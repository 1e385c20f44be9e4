//! Volumes of pods.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::{
    api::core::v1::{
        CSIVolumeSource, ConfigMapVolumeSource, DownwardAPIVolumeFile, DownwardAPIVolumeSource,
        KeyToPath, ProjectedVolumeSource, SecretVolumeSource, StorageOSVolumeSource, Volume,
        VolumeProjection,
    },
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};

use super::{
    claims::validate_claim_template,
    env::{DOWNWARD_VOLUME_FIELDS, validate_field_selector, validate_resource_selector},
    labels::{SelectorRules, validate_selector},
    text,
    volume_sources::*,
};
use crate::{
    field::{Bad, Errors, Path, quoted},
    quantity::Amount,
    zero::{Flag, List, Text},
};

/// The valid ones by name, for the mounts to be checked against.
pub type VolumesByName<'a> = BTreeMap<&'a str, &'a Volume>;

pub fn validate_volumes<'a>(
    volumes: &'a [Volume],
    pod: Option<&ObjectMeta>,
    path: &Path<'_>,
    errors: &mut Errors,
) -> VolumesByName<'a> {
    let pod_name = pod.map_or("", |meta| meta.name.text());
    let created: BTreeSet<String> = volumes
        .iter()
        .filter(|volume| !pod_name.is_empty() && volume.ephemeral.is_some())
        .map(|volume| format!("{pod_name}-{}", volume.name))
        .collect();
    let mut valid = VolumesByName::new();
    for (i, volume) in volumes.iter().enumerate() {
        let path = path.index(i);
        let name_path = path.child("name");
        let before = errors.len();
        validate_source(volume, pod, &path, errors);
        if volume.name.is_empty() {
            errors.required(&name_path, "");
        } else {
            errors.invalid_each(&name_path, &volume.name, text::dns1123_label(&volume.name));
        }
        if valid.contains_key(volume.name.as_str()) {
            errors.duplicate(&name_path, &volume.name);
        }
        if errors.len() == before {
            valid.insert(&volume.name, volume);
        }
        if let Some(claim) = &volume.persistent_volume_claim
            && created.contains(&claim.claim_name)
        {
            errors.invalid(
                &path.child("persistentVolumeClaim.claimName"),
                &claim.claim_name,
                "must not reference a PVC that gets created for an ephemeral volume",
            );
        }
    }
    valid
}

/// The path names of upstream's, its slips included.
fn validate_source(
    volume: &Volume,
    pod: Option<&ObjectMeta>,
    path: &Path<'_>,
    errors: &mut Errors,
) {
    let pod_name = pod.map_or("", |meta| meta.name.text());
    let mut one = OneSource::default();
    if let Some(empty) = one.take(&volume.empty_dir, &path.child("emptyDir"), errors) {
        let negative = empty
            .size_limit
            .as_ref()
            .is_some_and(|limit| Amount::of(limit).is_negative());
        if negative {
            errors.forbidden(
                &path.child("emptyDir.sizeLimit"),
                "SizeLimit field must be a valid resource quantity",
            );
        }
    }
    let at = path.child("hostPath");
    if let Some(source) = one.take(&volume.host_path, &at, errors) {
        validate_host_path(source, &at, errors);
    }
    let at = path.child("gitRepo");
    if let Some(source) = one.take(&volume.git_repo, &at, errors) {
        require(&source.repository, &at.child("repository"), errors);
        validate_descending_path(source.directory.text(), &at.child("directory"), errors);
    }
    if let Some(source) = one.take(
        &volume.gce_persistent_disk,
        &path.child("gcePersistentDisk"),
        errors,
    ) {
        validate_gce(source, &path.child("persistentDisk"), errors);
    }
    let at = path.child("awsElasticBlockStore");
    if let Some(source) = one.take(&volume.aws_elastic_block_store, &at, errors) {
        validate_aws(source, &at, errors);
    }
    let at = path.child("secret");
    if let Some(source) = one.take(&volume.secret, &at, errors) {
        validate_secret(source, &at, errors);
    }
    let at = path.child("nfs");
    if let Some(source) = one.take(&volume.nfs, &at, errors) {
        validate_nfs(source, &at, errors);
    }
    let at = path.child("iscsi");
    if let Some(source) = one.take(&volume.iscsi, &at, errors) {
        let iscsi = Iscsi {
            target_portal: &source.target_portal,
            iqn: &source.iqn,
            lun: source.lun,
            chap: source.chap_auth_discovery.is_true() || source.chap_auth_session.is_true(),
            has_secret: source.secret_ref.is_some(),
            initiator: source.initiator_name.as_deref(),
            of_pod: true,
        };
        validate_iscsi(&iscsi, &at, errors);
    }
    if let Some(source) = &volume.iscsi
        && source.initiator_name.is_some()
        && volume.name.len() + 1 + source.target_portal.len() > 64
    {
        errors.invalid(
            &path.child("name"),
            &volume.name,
            "Total length of <volume name>:<iscsi.targetPortal> must be under 64 characters if iscsi.initiatorName is specified.",
        );
    }
    let at = path.child("glusterfs");
    if let Some(source) = one.take(&volume.glusterfs, &at, errors) {
        validate_glusterfs(&source.endpoints, &source.path, &at, errors);
    }
    let at = path.child("flocker");
    if let Some(source) = one.take(&volume.flocker, &at, errors) {
        validate_flocker(source, &at, errors);
    }
    let at = path.child("persistentVolumeClaim");
    if let Some(source) = one.take(&volume.persistent_volume_claim, &at, errors) {
        require(&source.claim_name, &at.child("claimName"), errors);
    }
    let at = path.child("rbd");
    if let Some(source) = one.take(&volume.rbd, &at, errors) {
        validate_rbd(&source.monitors, &source.image, &at, errors);
    }
    let at = path.child("cinder");
    if let Some(source) = one.take(&volume.cinder, &at, errors) {
        require(&source.volume_id, &at.child("volumeID"), errors);
        if let Some(secret) = &source.secret_ref {
            require(&secret.name, &at.child("secretRef.name"), errors);
        }
    }
    if let Some(source) = one.take(&volume.cephfs, &path.child("cephFS"), errors) {
        validate_cephfs(&source.monitors, &path.child("cephfs"), errors);
    }
    let at = path.child("quobyte");
    if let Some(source) = one.take(&volume.quobyte, &at, errors) {
        validate_quobyte(source, &at, errors);
    }
    if let Some(source) = one.take(&volume.downward_api, &path.child("downwarAPI"), errors) {
        validate_downward(source, &path.child("downwardAPI"), errors);
    }
    let at = path.child("fc");
    if let Some(source) = one.take(&volume.fc, &at, errors) {
        validate_fc(source, &at, errors);
    }
    let at = path.child("flexVolume");
    if let Some(source) = one.take(&volume.flex_volume, &at, errors) {
        validate_flex(&source.driver, source.options.as_ref(), &at, errors);
    }
    let at = path.child("configMap");
    if let Some(source) = one.take(&volume.config_map, &at, errors) {
        validate_config_map(source, &at, errors);
    }
    let at = path.child("azureFile");
    if let Some(source) = one.take(&volume.azure_file, &at, errors) {
        validate_azure_file(&source.secret_name, &source.share_name, &at, errors);
    }
    let at = path.child("vsphereVolume");
    if let Some(source) = one.take(&volume.vsphere_volume, &at, errors) {
        validate_vsphere(source, &at, errors);
    }
    let at = path.child("photonPersistentDisk");
    if let Some(source) = one.take(&volume.photon_persistent_disk, &at, errors) {
        validate_photon(source, &at, errors);
    }
    let at = path.child("portworxVolume");
    if let Some(source) = one.take(&volume.portworx_volume, &at, errors) {
        validate_portworx(source, &at, errors);
    }
    let at = path.child("azureDisk");
    if let Some(source) = one.take(&volume.azure_disk, &at, errors) {
        validate_azure_disk(source, &at, errors);
    }
    let at = path.child("storageos");
    if let Some(source) = one.take(&volume.storageos, &at, errors) {
        validate_storage_os(source, &at, errors);
    }
    let at = path.child("projected");
    if let Some(source) = one.take(&volume.projected, &at, errors) {
        validate_projected(source, &at, errors);
    }
    let at = path.child("scaleIO");
    if let Some(source) = one.take(&volume.scale_io, &at, errors) {
        let volume = source.volume_name.text();
        validate_scale_io(&source.gateway, &source.system, volume, &at, errors);
    }
    let at = path.child("csi");
    if let Some(source) = one.take(&volume.csi, &at, errors) {
        validate_csi(source, &at, errors);
    }
    let at = path.child("ephemeral");
    if let Some(source) = one.take(&volume.ephemeral, &at, errors) {
        let at = at.child("volumeClaimTemplate");
        match &source.volume_claim_template {
            Some(template) => validate_claim_template(template, &at, errors),
            None => errors.required(&at, ""),
        }
        if !pod_name.is_empty() && !volume.name.is_empty() {
            let claim = format!("{pod_name}-{}", volume.name);
            for message in text::dns1123_subdomain(&claim) {
                errors.invalid(
                    &path.child("name"),
                    &volume.name,
                    format!("PVC name {}: {message}", quoted(&claim)),
                );
            }
        }
    }
    let at = path.child("image");
    if let Some(source) = one.take(&volume.image, &at, errors) {
        // A template may leave it to what makes pods of it.
        if pod.is_some() {
            require(source.reference.text(), &at.child("reference"), errors);
        }
        super::containers::validate_pull_policy(
            source.pull_policy.text(),
            &at.child("pullPolicy"),
            errors,
        );
    }
    one.or_required(path, errors);
}

fn validate_secret(source: &SecretVolumeSource, path: &Path<'_>, errors: &mut Errors) {
    require(source.secret_name.text(), &path.child("secretName"), errors);
    validate_file_mode(source.default_mode, &path.child("defaultMode"), errors);
    validate_items(source.items.items(), path, errors);
}

fn validate_config_map(source: &ConfigMapVolumeSource, path: &Path<'_>, errors: &mut Errors) {
    require(&source.name, &path.child("name"), errors);
    validate_file_mode(source.default_mode, &path.child("defaultMode"), errors);
    validate_items(source.items.items(), path, errors);
}

fn validate_items(items: &[KeyToPath], path: &Path<'_>, errors: &mut Errors) {
    let path = path.child("items");
    for (i, item) in items.iter().enumerate() {
        validate_key_to_path(item, &path.index(i), errors);
    }
}

fn validate_key_to_path(item: &KeyToPath, path: &Path<'_>, errors: &mut Errors) {
    require(&item.key, &path.child("key"), errors);
    require(&item.path, &path.child("path"), errors);
    validate_non_reserved_path(&item.path, &path.child("path"), errors);
    validate_file_mode(item.mode, &path.child("mode"), errors);
}

fn validate_downward(source: &DownwardAPIVolumeSource, path: &Path<'_>, errors: &mut Errors) {
    validate_file_mode(source.default_mode, &path.child("defaultMode"), errors);
    for file in source.items.items() {
        validate_downward_file(file, path, errors);
    }
}

fn validate_downward_file(file: &DownwardAPIVolumeFile, path: &Path<'_>, errors: &mut Errors) {
    require(&file.path, &path.child("path"), errors);
    validate_non_reserved_path(&file.path, &path.child("path"), errors);
    match (&file.field_ref, &file.resource_field_ref) {
        (Some(field), resource) => {
            validate_field_selector(
                field,
                &DOWNWARD_VOLUME_FIELDS,
                &path.child("fieldRef"),
                errors,
            );
            if resource.is_some() {
                errors.invalid(
                    path,
                    "resource",
                    "fieldRef and resourceFieldRef can not be specified simultaneously",
                );
            }
        }
        (None, Some(resource)) => {
            validate_resource_selector(resource, true, &path.child("resourceFieldRef"), errors);
        }
        (None, None) => errors.required(path, "one of fieldRef and resourceFieldRef is required"),
    }
    validate_file_mode(file.mode, &path.child("mode"), errors);
}

fn validate_projected(source: &ProjectedVolumeSource, path: &Path<'_>, errors: &mut Errors) {
    validate_file_mode(source.default_mode, &path.child("defaultMode"), errors);
    let mut paths = BTreeSet::new();
    let sources = path.child("sources");
    for (i, projection) in source.sources.items().iter().enumerate() {
        validate_projection(projection, &mut paths, path, &sources.index(i), errors);
    }
}

fn validate_projection<'a>(
    source: &'a VolumeProjection,
    paths: &mut BTreeSet<&'a str>,
    volume_path: &Path<'_>,
    path: &Path<'_>,
    errors: &mut Errors,
) {
    const CONFLICT: &str = "conflicting duplicate paths";
    let mut count = 0;
    for (field, projection) in [
        (
            "secret",
            source
                .secret
                .as_ref()
                .map(|one| (&one.name, one.items.items())),
        ),
        (
            "configMap",
            source
                .config_map
                .as_ref()
                .map(|one| (&one.name, one.items.items())),
        ),
    ] {
        let Some((name, items)) = projection else {
            continue;
        };
        count += 1;
        let path = path.child(field);
        require(name, &path.child("name"), errors);
        let items_path = path.child("items");
        for (i, item) in items.iter().enumerate() {
            validate_key_to_path(item, &items_path.index(i), errors);
            if !item.path.is_empty() && !paths.insert(&item.path) {
                errors.invalid(volume_path, name, CONFLICT);
            }
        }
    }
    if let Some(downward) = &source.downward_api {
        count += 1;
        for file in downward.items.items() {
            validate_downward_file(file, &path.child("downwardAPI"), errors);
            if !file.path.is_empty() && !paths.insert(&file.path) {
                errors.invalid(volume_path, &file.path, CONFLICT);
            }
        }
    }
    if let Some(token) = &source.service_account_token {
        count += 1;
        let seconds = token.expiration_seconds.unwrap_or(0);
        let path = path.child("serviceAccountToken");
        if seconds < 600 {
            errors.invalid(
                &path.child("expirationSeconds"),
                seconds,
                "may not specify a duration less than 10 minutes",
            );
        }
        if seconds > 1 << 32 {
            errors.invalid(
                &path.child("expirationSeconds"),
                seconds,
                "may not specify a duration larger than 2^32 seconds",
            );
        }
        let path = volume_path.child("path");
        if token.path.is_empty() {
            errors.required(&path, "");
        } else {
            validate_non_reserved_path(&token.path, &path, errors);
        }
    }
    if let Some(bundle) = &source.cluster_trust_bundle {
        count += 1;
        let path = path.child("clusterTrustBundle");
        match (&bundle.name, &bundle.signer_name) {
            (Some(_), Some(_)) => errors.invalid(
                &path,
                super::internal::bad("TrustProjection", bundle),
                "only one of name and signerName may be used",
            ),
            (Some(name), None) => {
                if name.is_empty() {
                    errors.required(&path.child("name"), "must be a valid object name");
                }
                if bundle.label_selector.is_some() {
                    errors.invalid(
                        &path.child("labelSelector"),
                        Bad::json(&bundle.label_selector),
                        "labelSelector must be unset if name is specified",
                    );
                }
            }
            (None, Some(signer)) => {
                if signer.is_empty() {
                    errors.required(&path.child("signerName"), "must be a valid signer name");
                }
                validate_selector(
                    bundle.label_selector.as_ref(),
                    SelectorRules::default(),
                    &path.child("labelSelector"),
                    errors,
                );
            }
            (None, None) => {
                errors.required(&path, "either name or signerName must be specified");
            }
        }
        require(&bundle.path, &path.child("path"), errors);
        validate_non_reserved_path(&bundle.path, &path.child("path"), errors);
        if !paths.insert(&bundle.path) {
            errors.invalid(volume_path, &bundle.path, CONFLICT);
        }
    }
    if source.pod_certificate.is_some() {
        count += 1;
    }
    if count > 1 {
        errors.forbidden(path, "may not specify more than 1 volume type per source");
    }
}

fn validate_csi(source: &CSIVolumeSource, path: &Path<'_>, errors: &mut Errors) {
    validate_csi_driver_name(&source.driver, &path.child("driver"), errors);
    if let Some(secret) = &source.node_publish_secret_ref {
        if secret.name.is_empty() {
            errors.required(&path.child("nodePublishSecretRef.name"), "");
        } else {
            errors.invalid_each(
                &path.child("name"),
                &secret.name,
                text::dns1123_subdomain(&secret.name),
            );
        }
    }
}

fn validate_storage_os(source: &StorageOSVolumeSource, path: &Path<'_>, errors: &mut Errors) {
    let (name, namespace) = (source.volume_name.text(), source.volume_namespace.text());
    validate_storage_os_names(name, namespace, path, errors);
    if let Some(secret) = &source.secret_ref {
        require(&secret.name, &path.child("secretRef.name"), errors);
    }
}
