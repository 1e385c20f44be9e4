use k8s_openapi::api::core::v1::{
    CSIPersistentVolumeSource, PersistentVolume, PersistentVolumeSpec, PersistentVolumeStatus,
    SecretReference,
};

use crate::{
    defaults::pod_spec::round_up,
    field::{Bad, Errors, Path},
    kinds::{Check, Kind, Rules},
    quantity::Amount,
    strategy::Warnings,
    validation::{
        claims::{VOLUME_MODES, validate_access_modes, validate_class_name},
        internal::{self, volume_source_diff},
        resources::{validate_basic_resource, validate_positive},
        scheduling::validate_node_selector,
        text,
        volume_sources::*,
    },
    zero::{Flag, List, Text, fill, set},
};

const RECLAIM_POLICIES: [&str; 3] = ["Delete", "Recycle", "Retain"];

impl Kind for PersistentVolume {
    const RULES: Rules =
        Rules::cluster()
            .status()
            .update_checks(&[Check::Metadata, Check::Object, Check::Metadata]);

    fn set_defaults(&mut self) {
        fill(&mut self.status.get_or_insert_default().phase, "Pending");
        let spec = self.spec.get_or_insert_default();
        fill(&mut spec.persistent_volume_reclaim_policy, "Retain");
        set(&mut spec.volume_mode, "Filesystem".to_owned());
        round_up(spec.capacity.as_mut());
        set_source_defaults(spec);
    }

    fn prepare_create(&mut self) {
        self.status = Some(PersistentVolumeStatus {
            phase: Some("Pending".to_owned()),
            last_phase_transition_time: self.metadata.creation_timestamp.clone(),
            ..PersistentVolumeStatus::default()
        });
    }

    fn validate(&self, errors: &mut Errors) {
        let spec = self.spec.clone().unwrap_or_default();
        let name = self.metadata.name.text();
        validate_spec(&spec, name, false, &Path::new("spec"), errors);
    }

    fn validate_update(&self, old: &Self, errors: &mut Errors) {
        self.validate(errors);
        let spec = self.spec.clone().unwrap_or_default();
        let old_spec = old.spec.clone().unwrap_or_default();
        if source_of(&spec, &old_spec) != source_of(&old_spec, &old_spec) {
            errors.forbidden(
                &Path::new("spec.persistentvolumesource"),
                format!(
                    "spec.persistentvolumesource is immutable after creation\n{}",
                    volume_source_diff(&old_spec, &spec)
                ),
            );
        }
        errors.immutable(
            &Path::new("volumeMode"),
            &spec.volume_mode,
            &old_spec.volume_mode,
        );
        if old_spec.node_affinity.is_some() && spec.node_affinity != old_spec.node_affinity {
            errors.invalid(
                &Path::new("nodeAffinity"),
                internal::bad("VolumeNodeAffinity", &spec.node_affinity),
                "field is immutable, except for updating from beta label to GA",
            );
        }
        if old_spec.volume_attributes_class_name.is_some()
            && spec.volume_attributes_class_name.is_none()
        {
            errors.forbidden(
                &Path::new("spec.volumeAttributesClassName"),
                "update from non-nil value to nil is forbidden",
            );
        }
    }

    fn warnings(&self, _old: Option<&Self>) -> Warnings {
        let mut warnings = Warnings::new();
        let spec = self.spec.clone().unwrap_or_default();
        let annotations = self.metadata.annotations.as_ref();
        for (key, message) in [
            (
                "volume.beta.kubernetes.io/storage-class",
                "deprecated since v1.8; use \"storageClassName\" attribute instead",
            ),
            (
                "volume.beta.kubernetes.io/mount-options",
                "deprecated since v1.31; use \"mountOptions\" attribute instead",
            ),
        ] {
            if annotations.is_some_and(|all| all.contains_key(key)) {
                warnings.push(format!("metadata.annotations[{key}]: {message}"));
            }
        }
        if spec.persistent_volume_reclaim_policy.text() == "Recycle" {
            warnings.push("spec.persistentVolumeReclaimPolicy: The Recycle reclaim policy is deprecated. Instead, the recommended approach is to use dynamic provisioning.".to_owned());
        }
        let required = spec
            .node_affinity
            .as_ref()
            .and_then(|one| one.required.as_ref());
        let path = Path::new("spec.nodeAffinity.required.nodeSelectorTerms");
        let terms = required
            .map(|one| one.node_selector_terms.as_slice())
            .unwrap_or_default();
        for (i, term) in terms.iter().enumerate() {
            crate::validation::warnings::node_selector_term_warnings(
                term,
                false,
                &path.index(i),
                &mut warnings,
            );
        }
        for (used, field, message) in [
            (
                spec.photon_persistent_disk.is_some(),
                "photonPersistentDisk",
                "deprecated in v1.11, non-functional in v1.16+",
            ),
            (
                spec.scale_io.is_some(),
                "scaleIO",
                "deprecated in v1.16, non-functional in v1.22+",
            ),
            (
                spec.storageos.is_some(),
                "storageOS",
                "deprecated in v1.22, non-functional in v1.25+",
            ),
            (
                spec.glusterfs.is_some(),
                "glusterfs",
                "deprecated in v1.25, non-functional in v1.26+",
            ),
            (
                spec.cephfs.is_some(),
                "cephfs",
                "deprecated in v1.28, non-functional in v1.31+",
            ),
            (
                spec.rbd.is_some(),
                "rbd",
                "deprecated in v1.28, non-functional in v1.31+",
            ),
        ] {
            if used {
                warnings.push(format!("spec.{field}: {message}"));
            }
        }
        warnings
    }

    fn printer() -> std::sync::Arc<dyn crate::printer::Printer> {
        crate::printers::storage::persistent_volume()
    }
}

fn set_source_defaults(spec: &mut PersistentVolumeSpec) {
    if let Some(source) = &mut spec.host_path {
        set(&mut source.type_, String::new());
    }
    if let Some(source) = &mut spec.iscsi {
        fill(&mut source.iscsi_interface, "default");
    }
    if let Some(source) = &mut spec.rbd {
        fill(&mut source.pool, "rbd");
        fill(&mut source.user, "admin");
        fill(&mut source.keyring, "/etc/ceph/keyring");
    }
    if let Some(source) = &mut spec.azure_disk {
        set(&mut source.caching_mode, "ReadWrite".to_owned());
        set(&mut source.kind, "Shared".to_owned());
        set(&mut source.fs_type, "ext4".to_owned());
        set(&mut source.read_only, false);
    }
    if let Some(source) = &mut spec.scale_io {
        fill(&mut source.storage_mode, "ThinProvisioned");
        fill(&mut source.fs_type, "xfs");
    }
}

/// The part that never changes: the volume itself. A secret for growing it may be named later.
fn source_of(spec: &PersistentVolumeSpec, old: &PersistentVolumeSpec) -> PersistentVolumeSpec {
    let mut source = PersistentVolumeSpec {
        access_modes: None,
        capacity: None,
        claim_ref: None,
        mount_options: None,
        node_affinity: None,
        persistent_volume_reclaim_policy: None,
        storage_class_name: None,
        volume_attributes_class_name: None,
        volume_mode: None,
        ..spec.clone()
    };
    let had = old
        .csi
        .as_ref()
        .is_some_and(|csi| csi.controller_expand_secret_ref.is_some());
    if let Some(csi) = source.csi.as_mut().filter(|_| !had) {
        csi.controller_expand_secret_ref = None;
    }
    source
}

/// `inline`: as part of a VolumeAttachment.
pub(crate) fn validate_spec(
    spec: &PersistentVolumeSpec,
    pv_name: &str,
    inline: bool,
    path: &Path<'_>,
    errors: &mut Errors,
) {
    const INLINE: &str = "in the context of inline volumes";
    let none = Default::default();
    let capacity = spec.capacity.as_ref().unwrap_or(&none);
    if inline {
        if spec.claim_ref.is_some() {
            errors.forbidden(
                &path.child("claimRef"),
                format!("may not be specified {INLINE}"),
            );
        }
        if !capacity.is_empty() {
            errors.forbidden(
                &path.child("capacity"),
                format!("may not be specified {INLINE}"),
            );
        }
        if spec.csi.is_none() {
            errors.required(&path.child("csi"), format!("has to be specified {INLINE}"));
        }
    }
    let modes = spec.access_modes.items();
    if modes.is_empty() {
        errors.required(&path.child("accessModes"), "");
    }
    validate_access_modes(modes, &path.child("accessModes"), errors);
    if !inline {
        let at = path.child("capacity");
        if capacity.is_empty() {
            errors.required(&at, "");
        }
        if !capacity.contains_key("storage") || capacity.len() > 1 {
            errors.not_supported(&at, Bad::json(&spec.capacity), &["storage"]);
        }
        for (name, quantity) in capacity {
            let amount = Amount::of(quantity);
            validate_basic_resource(amount, &at.key(name), errors);
            validate_positive(amount, &at.key(name), errors);
        }
    }
    let policy = spec.persistent_volume_reclaim_policy.text();
    let policy_at = path.child("persistentVolumeReclaimPolicy");
    if inline && !matches!(policy, "" | "Retain") {
        errors.forbidden(&policy_at, format!("may only be Retain {INLINE}"));
    } else if !inline && !policy.is_empty() && !RECLAIM_POLICIES.contains(&policy) {
        errors.not_supported(&policy_at, policy, &RECLAIM_POLICIES);
    }
    if let Some(affinity) = &spec.node_affinity {
        let at = path.child("nodeAffinity");
        if inline {
            errors.forbidden(&at, format!("may not be specified {INLINE}"));
        } else {
            match &affinity.required {
                Some(selector) => validate_node_selector(selector, &at.child("required"), errors),
                None => errors.required(
                    &at.child("required"),
                    "must specify required node constraints",
                ),
            }
        }
    }
    validate_source(spec, pv_name, path, errors);
    let root = spec
        .host_path
        .as_ref()
        .is_some_and(|source| is_root(&source.path));
    if root && policy == "Recycle" {
        errors.forbidden(
            &policy_at,
            "may not be 'recycle' for a hostPath mount of '/'",
        );
    }
    let class = spec.storage_class_name.text();
    if inline && !class.is_empty() {
        errors.forbidden(
            &path.child("storageClassName"),
            format!("may not be specified {INLINE}"),
        );
    } else {
        validate_class_name(class, &path.child("storageClassName"), errors);
    }
    if let Some(mode) = &spec.volume_mode {
        let at = path.child("volumeMode");
        if inline && mode != "Filesystem" {
            errors.forbidden(
                &at,
                format!("may not specify volumeMode other than Filesystem {INLINE}"),
            );
        } else if !inline && !VOLUME_MODES.contains(&mode.as_str()) {
            errors.not_supported(&at, mode, &VOLUME_MODES);
        }
    }
    if let Some(class) = &spec.volume_attributes_class_name {
        let at = path.child("volumeAttributesClassName");
        if class.is_empty() {
            errors.required(&at, "an empty string is disallowed");
        } else {
            validate_class_name(class, &at, errors);
        }
        if spec.csi.is_none() {
            errors.required(
                &path.child("csi"),
                "has to be specified when using volumeAttributesClassName",
            );
        }
    }
}

/// `/`, however it is written.
fn is_root(path: &str) -> bool {
    path.starts_with('/') && path.split('/').all(|part| matches!(part, "" | "." | ".."))
}

fn validate_source(
    spec: &PersistentVolumeSpec,
    pv_name: &str,
    path: &Path<'_>,
    errors: &mut Errors,
) {
    let mut one = OneSource::default();
    let at = path.child("hostPath");
    if let Some(source) = one.take(&spec.host_path, &at, errors) {
        validate_host_path(source, &at, errors);
    }
    if let Some(source) = one.take(
        &spec.gce_persistent_disk,
        &path.child("gcePersistentDisk"),
        errors,
    ) {
        validate_gce(source, &path.child("persistentDisk"), errors);
    }
    let at = path.child("awsElasticBlockStore");
    if let Some(source) = one.take(&spec.aws_elastic_block_store, &at, errors) {
        validate_aws(source, &at, errors);
    }
    let at = path.child("glusterfs");
    if let Some(source) = one.take(&spec.glusterfs, &at, errors) {
        validate_glusterfs(&source.endpoints, &source.path, &at, errors);
        if let Some(namespace) = &source.endpoints_namespace {
            let at = at.child("endpointsNamespace");
            if namespace.is_empty() {
                errors.invalid(
                    &at,
                    namespace,
                    "if the endpointnamespace is set, it must be a valid namespace name",
                );
            } else {
                errors.invalid_each(&at, namespace, text::dns1123_label(namespace));
            }
        }
    }
    let at = path.child("flocker");
    if let Some(source) = one.take(&spec.flocker, &at, errors) {
        validate_flocker(source, &at, errors);
    }
    let at = path.child("nfs");
    if let Some(source) = one.take(&spec.nfs, &at, errors) {
        validate_nfs(source, &at, errors);
    }
    let at = path.child("rbd");
    if let Some(source) = one.take(&spec.rbd, &at, errors) {
        validate_rbd(&source.monitors, &source.image, &at, errors);
    }
    let at = path.child("quobyte");
    if let Some(source) = one.take(&spec.quobyte, &at, errors) {
        validate_quobyte(source, &at, errors);
    }
    if let Some(source) = one.take(&spec.cephfs, &path.child("cephFS"), errors) {
        validate_cephfs(&source.monitors, &path.child("cephfs"), errors);
    }
    let at = path.child("iscsi");
    if let Some(source) = one.take(&spec.iscsi, &at, errors) {
        if source.initiator_name.is_some() && pv_name.len() + 1 + source.target_portal.len() > 64 {
            errors.invalid(
                &at.child("targetportal"),
                &source.target_portal,
                "Total length of <volume name>:<iscsi.targetPortal> must be under 64 characters if iscsi.initiatorName is specified.",
            );
        }
        let iscsi = Iscsi {
            target_portal: &source.target_portal,
            iqn: &source.iqn,
            lun: source.lun,
            chap: source.chap_auth_discovery.is_true() || source.chap_auth_session.is_true(),
            has_secret: source.secret_ref.is_some(),
            initiator: source.initiator_name.as_deref(),
            of_pod: false,
        };
        validate_iscsi(&iscsi, &at, errors);
        if let Some(secret) = &source.secret_ref {
            require(secret.name.text(), &at.child("secretRef.name"), errors);
        }
    }
    let at = path.child("cinder");
    if let Some(source) = one.take(&spec.cinder, &at, errors) {
        require(&source.volume_id, &at.child("volumeID"), errors);
        if let Some(secret) = &source.secret_ref {
            require(secret.name.text(), &at.child("secretRef.name"), errors);
            require(
                secret.namespace.text(),
                &at.child("secretRef.namespace"),
                errors,
            );
        }
    }
    let at = path.child("fc");
    if let Some(source) = one.take(&spec.fc, &at, errors) {
        validate_fc(source, &at, errors);
    }
    let at = path.child("flexVolume");
    // Not refused beside others, by an oversight of upstream's.
    if let Some(source) = one.take_any(&spec.flex_volume) {
        validate_flex(&source.driver, source.options.as_ref(), &at, errors);
    }
    let at = path.child("azureFile");
    if let Some(source) = one.take(&spec.azure_file, &at, errors) {
        validate_azure_file(&source.secret_name, &source.share_name, &at, errors);
        if let Some(namespace) = &source.secret_namespace {
            require(namespace, &at.child("secretNamespace"), errors);
        }
    }
    let at = path.child("vsphereVolume");
    if let Some(source) = one.take(&spec.vsphere_volume, &at, errors) {
        validate_vsphere(source, &at, errors);
    }
    let at = path.child("photonPersistentDisk");
    if let Some(source) = one.take(&spec.photon_persistent_disk, &at, errors) {
        validate_photon(source, &at, errors);
    }
    let at = path.child("portworxVolume");
    if let Some(source) = one.take(&spec.portworx_volume, &at, errors) {
        validate_portworx(source, &at, errors);
    }
    let at = path.child("azureDisk");
    if let Some(source) = one.take(&spec.azure_disk, &at, errors) {
        validate_azure_disk(source, &at, errors);
    }
    let at = path.child("scaleIO");
    if let Some(source) = one.take(&spec.scale_io, &at, errors) {
        let volume = source.volume_name.text();
        validate_scale_io(&source.gateway, &source.system, volume, &at, errors);
    }
    let at = path.child("local");
    if let Some(source) = one.take(&spec.local, &at, errors) {
        require(&source.path, &at.child("path"), errors);
        validate_no_backsteps(&source.path, &at.child("path"), errors);
        if spec.node_affinity.is_none() {
            errors.required(
                &path.child("nodeAffinity"),
                "Local volume requires node affinity",
            );
        }
    }
    let at = path.child("storageos");
    if let Some(source) = one.take(&spec.storageos, &at, errors) {
        let (name, namespace) = (source.volume_name.text(), source.volume_namespace.text());
        validate_storage_os_names(name, namespace, &at, errors);
        if let Some(secret) = &source.secret_ref {
            let at = at.child("secretRef");
            require(secret.name.text(), &at.child("name"), errors);
            require(secret.namespace.text(), &at.child("namespace"), errors);
        }
    }
    let at = path.child("csi");
    if let Some(source) = one.take(&spec.csi, &at, errors) {
        validate_csi(source, &at, errors);
    }
    one.or_required(path, errors);
}

fn validate_csi(source: &CSIPersistentVolumeSource, path: &Path<'_>, errors: &mut Errors) {
    validate_csi_driver_name(&source.driver, &path.child("driver"), errors);
    require(&source.volume_handle, &path.child("volumeHandle"), errors);
    for (field, secret) in [
        (
            "controllerPublishSecretRef",
            &source.controller_publish_secret_ref,
        ),
        (
            "controllerExpandSecretRef",
            &source.controller_expand_secret_ref,
        ),
        ("nodePublishSecretRef", &source.node_publish_secret_ref),
        ("nodeExpandSecretRef", &source.node_expand_secret_ref),
    ] {
        if let Some(secret) = secret {
            validate_secret(secret, &path.child(field), errors);
        }
    }
}

fn validate_secret(secret: &SecretReference, path: &Path<'_>, errors: &mut Errors) {
    let (name, namespace) = (secret.name.text(), secret.namespace.text());
    require(name, &path.child("name"), errors);
    if !name.is_empty() {
        errors.invalid_each(&path.child("name"), name, text::dns1123_subdomain(name));
    }
    require(namespace, &path.child("namespace"), errors);
    if !namespace.is_empty() {
        errors.invalid_each(
            &path.child("namespace"),
            namespace,
            text::dns1123_label(namespace),
        );
    }
}
