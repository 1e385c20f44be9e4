//! What a volume is made of, where pods and persistent volumes agree.

use std::{collections::BTreeMap, sync::LazyLock};

use k8s_openapi::api::core::v1::{
    AWSElasticBlockStoreVolumeSource, AzureDiskVolumeSource, FCVolumeSource, FlockerVolumeSource,
    GCEPersistentDiskVolumeSource, HostPathVolumeSource, NFSVolumeSource,
    PhotonPersistentDiskVolumeSource, PortworxVolumeSource, QuobyteVolumeSource,
    VsphereVirtualDiskVolumeSource,
};
use regex::Regex;

use super::text;
use crate::{
    field::{Bad, Errors, Path},
    zero::{List, Text},
};

pub const HOST_PATH_TYPES: [&str; 8] = [
    "",
    "BlockDevice",
    "CharDevice",
    "Directory",
    "DirectoryOrCreate",
    "File",
    "FileOrCreate",
    "Socket",
];

/// Lets the first source through and refuses every further one.
#[derive(Default)]
pub struct OneSource {
    found: bool,
}

impl OneSource {
    /// The source, if it is there and the first.
    pub fn take<'a, T>(
        &mut self,
        source: &'a Option<T>,
        path: &Path<'_>,
        errors: &mut Errors,
    ) -> Option<&'a T> {
        let source = source.as_ref()?;
        if self.found {
            errors.forbidden(path, "may not specify more than 1 volume type");
            return None;
        }
        self.found = true;
        Some(source)
    }

    /// The source, whether or not it is the first.
    pub fn take_any<'a, T>(&mut self, source: &'a Option<T>) -> Option<&'a T> {
        self.found |= source.is_some();
        source.as_ref()
    }

    pub fn or_required(self, path: &Path<'_>, errors: &mut Errors) {
        if !self.found {
            errors.required(path, "must specify a volume type");
        }
    }
}

pub fn require(value: &str, path: &Path<'_>, errors: &mut Errors) {
    if value.is_empty() {
        errors.required(path, "");
    }
}

/// Not absolute, nothing leading up.
pub fn validate_descending_path(value: &str, path: &Path<'_>, errors: &mut Errors) {
    if value.starts_with('/') {
        errors.invalid(path, value, "must be a relative path");
    }
    validate_no_backsteps(value, path, errors);
}

pub fn validate_no_backsteps(value: &str, path: &Path<'_>, errors: &mut Errors) {
    if value.split('/').any(|part| part == "..") {
        errors.invalid(path, value, "must not contain '..'");
    }
}

/// The same for names that the agent puts beside its own `..data`.
pub fn validate_non_reserved_path(value: &str, path: &Path<'_>, errors: &mut Errors) {
    validate_descending_path(value, path, errors);
    if value.starts_with("..") && !value.starts_with("../") {
        errors.invalid(path, value, "must not start with '..'");
    }
}

pub fn validate_file_mode(mode: Option<i32>, path: &Path<'_>, errors: &mut Errors) {
    if let Some(mode) = mode.filter(|mode| !(0..=0o777).contains(mode)) {
        errors.invalid(
            path,
            mode,
            "must be a number between 0 and 0777 (octal), both inclusive",
        );
    }
}

pub fn validate_host_path(source: &HostPathVolumeSource, path: &Path<'_>, errors: &mut Errors) {
    if source.path.is_empty() {
        errors.required(&path.child("path"), "");
        return;
    }
    validate_no_backsteps(&source.path, &path.child("path"), errors);
    if let Some(type_) = &source.type_
        && !HOST_PATH_TYPES.contains(&type_.as_str())
    {
        errors.not_supported(&path.child("type"), type_, &HOST_PATH_TYPES);
    }
}

fn validate_partition(partition: Option<i32>, path: &Path<'_>, errors: &mut Errors) {
    if let Some(partition) = partition.filter(|partition| !(0..=255).contains(partition)) {
        errors.invalid(
            &path.child("partition"),
            partition,
            text::inclusive_range(1, 255),
        );
    }
}

pub fn validate_gce(source: &GCEPersistentDiskVolumeSource, path: &Path<'_>, errors: &mut Errors) {
    require(&source.pd_name, &path.child("pdName"), errors);
    validate_partition(source.partition, path, errors);
}

pub fn validate_aws(
    source: &AWSElasticBlockStoreVolumeSource,
    path: &Path<'_>,
    errors: &mut Errors,
) {
    require(&source.volume_id, &path.child("volumeID"), errors);
    validate_partition(source.partition, path, errors);
}

pub fn validate_nfs(source: &NFSVolumeSource, path: &Path<'_>, errors: &mut Errors) {
    require(&source.server, &path.child("server"), errors);
    require(&source.path, &path.child("path"), errors);
    if !source.path.starts_with('/') {
        errors.invalid(
            &path.child("path"),
            &source.path,
            "must be an absolute path",
        );
    }
}

pub fn validate_quobyte(source: &QuobyteVolumeSource, path: &Path<'_>, errors: &mut Errors) {
    let pairs = "must be a host:port pair or multiple pairs separated by commas";
    if source.registry.is_empty() {
        errors.required(&path.child("registry"), pairs);
    } else if source.tenant.text().len() >= 65 {
        errors.required(
            &path.child("tenant"),
            "must be a UUID and may not exceed a length of 64 characters",
        );
    } else {
        for pair in source.registry.split(',') {
            if !is_host_and_port(pair) {
                errors.invalid(&path.child("registry"), &source.registry, pairs);
            }
        }
    }
    require(&source.volume, &path.child("volume"), errors);
}

/// What Go's `net.SplitHostPort` takes apart.
fn is_host_and_port(pair: &str) -> bool {
    let Some((host, port)) = pair.rsplit_once(':') else {
        return false;
    };
    let bare = host
        .strip_prefix('[')
        .and_then(|host| host.strip_suffix(']'));
    let host = match bare {
        Some(bare) => bare,
        None if host.contains(':') => return false,
        None => host,
    };
    !host.contains(['[', ']']) && !port.contains(['[', ']'])
}

pub fn validate_flocker(source: &FlockerVolumeSource, path: &Path<'_>, errors: &mut Errors) {
    let (name, uuid) = (source.dataset_name.text(), source.dataset_uuid.text());
    if name.is_empty() && uuid.is_empty() {
        errors.required(path, "one of datasetName and datasetUUID is required");
    }
    if !name.is_empty() && !uuid.is_empty() {
        errors.invalid(
            path,
            "resource",
            "datasetName and datasetUUID can not be specified simultaneously",
        );
    }
    if name.contains('/') {
        errors.invalid(&path.child("datasetName"), name, "must not contain '/'");
    }
}

pub fn validate_fc(source: &FCVolumeSource, path: &Path<'_>, errors: &mut Errors) {
    let targets = source.target_wwns.items();
    let targets_path = path.child("targetWWNs");
    if targets.is_empty() && source.wwids.items().is_empty() {
        errors.required(
            &targets_path,
            "must specify either targetWWNs or wwids, but not both",
        );
    }
    if !targets.is_empty() && !source.wwids.items().is_empty() {
        errors.invalid(
            &targets_path,
            Bad::json(&targets),
            "targetWWNs and wwids can not be specified simultaneously",
        );
    }
    if !targets.is_empty() {
        match source.lun {
            None => errors.required(
                &path.child("lun"),
                "lun is required if targetWWNs is specified",
            ),
            Some(lun) if !(0..=255).contains(&lun) => {
                errors.invalid(&path.child("lun"), lun, text::inclusive_range(0, 255));
            }
            Some(_) => {}
        }
    }
}

pub fn validate_azure_disk(source: &AzureDiskVolumeSource, path: &Path<'_>, errors: &mut Errors) {
    require(&source.disk_name, &path.child("diskName"), errors);
    require(&source.disk_uri, &path.child("diskURI"), errors);
    let modes = ["None", "ReadOnly", "ReadWrite"];
    if let Some(mode) = &source.caching_mode
        && !modes.contains(&mode.as_str())
    {
        errors.not_supported(&path.child("cachingMode"), mode, &modes);
    }
    let kinds = ["Dedicated", "Managed", "Shared"];
    let Some(kind) = &source.kind else { return };
    if !kinds.contains(&kind.as_str()) {
        errors.not_supported(&path.child("kind"), kind, &kinds);
    }
    let uri_path = path.child("diskURI");
    if kind == "Managed" && !source.disk_uri.starts_with("/subscriptions/") {
        errors.not_supported(
            &uri_path,
            &source.disk_uri,
            &["/subscriptions/{sub-id}/resourcegroups/{group-name}/providers/microsoft.compute/disks/{disk-id}"],
        );
    }
    if kind != "Managed" && !source.disk_uri.starts_with("https://") {
        errors.not_supported(
            &uri_path,
            &source.disk_uri,
            &["https://{account-name}.blob.core.windows.net/{container-name}/{disk-name}.vhd"],
        );
    }
}

pub fn validate_portworx(source: &PortworxVolumeSource, path: &Path<'_>, errors: &mut Errors) {
    require(&source.volume_id, &path.child("volumeID"), errors);
}

/// The part of iSCSI sources that pods and persistent volumes share.
pub struct Iscsi<'a> {
    pub target_portal: &'a str,
    pub iqn: &'a str,
    pub lun: i32,
    pub chap: bool,
    pub has_secret: bool,
    pub initiator: Option<&'a str>,
    pub of_pod: bool,
}

pub fn validate_iscsi(source: &Iscsi<'_>, path: &Path<'_>, errors: &mut Errors) {
    require(source.target_portal, &path.child("targetPortal"), errors);
    const PREFIX: &str = "must be valid format starting with iqn, eui, or naa";
    let unknown = if source.of_pod {
        PREFIX
    } else {
        "must be valid format"
    };
    if source.iqn.is_empty() {
        errors.required(&path.child("iqn"), "");
    } else {
        validate_iqn(source.iqn, unknown, &path.child("iqn"), errors);
    }
    if !(0..=255).contains(&source.lun) {
        errors.invalid(
            &path.child("lun"),
            source.lun,
            text::inclusive_range(0, 255),
        );
    }
    if source.chap && !source.has_secret {
        errors.required(&path.child("secretRef"), "");
    }
    if let Some(initiator) = source.initiator {
        validate_iqn(initiator, PREFIX, &path.child("initiatorname"), errors);
    }
}

fn validate_iqn(name: &str, unknown: &str, path: &Path<'_>, errors: &mut Errors) {
    let rule = match name.get(..3) {
        Some("iqn") => &*IQN,
        Some("eui") => &*EUI,
        Some("naa") => &*NAA,
        _ => {
            errors.invalid(path, name, unknown);
            return;
        }
    };
    if !rule.is_match(name) {
        errors.invalid(path, name, "must be valid format");
    }
}

#[expect(clippy::expect_used, reason = "the pattern is ours")]
fn pattern(text: &str) -> Regex {
    Regex::new(text).expect("a pattern")
}

/// `iqn.2001-04.com.example:storage` (RFC 3720 §3.2.6.3), as upstream reads it; the two after it likewise.
static IQN: LazyLock<Regex> =
    LazyLock::new(|| pattern(r"iqn\.\d{4}-\d{2}\.[[:alnum:].-]+:[^,;*&$|\s]+$"));
static EUI: LazyLock<Regex> = LazyLock::new(|| pattern("^eui.[[:alnum:]]{16}$"));
static NAA: LazyLock<Regex> = LazyLock::new(|| pattern("^naa.[[:alnum:]]{32}$"));

/// What a source of pods and one of PersistentVolumes share where their types differ.
pub fn validate_glusterfs(
    endpoints: &str,
    volume_path: &str,
    path: &Path<'_>,
    errors: &mut Errors,
) {
    require(endpoints, &path.child("endpoints"), errors);
    require(volume_path, &path.child("path"), errors);
}

pub fn validate_rbd(monitors: &[String], image: &str, path: &Path<'_>, errors: &mut Errors) {
    validate_cephfs(monitors, path, errors);
    require(image, &path.child("image"), errors);
}

pub fn validate_cephfs(monitors: &[String], path: &Path<'_>, errors: &mut Errors) {
    if monitors.is_empty() {
        errors.required(&path.child("monitors"), "");
    }
}

pub fn validate_azure_file(secret: &str, share: &str, path: &Path<'_>, errors: &mut Errors) {
    require(secret, &path.child("secretName"), errors);
    require(share, &path.child("shareName"), errors);
}

pub fn validate_vsphere(
    source: &VsphereVirtualDiskVolumeSource,
    path: &Path<'_>,
    errors: &mut Errors,
) {
    require(&source.volume_path, &path.child("volumePath"), errors);
}

pub fn validate_photon(
    source: &PhotonPersistentDiskVolumeSource,
    path: &Path<'_>,
    errors: &mut Errors,
) {
    require(&source.pd_id, &path.child("pdID"), errors);
}

pub fn validate_scale_io(
    gateway: &str,
    system: &str,
    volume: &str,
    path: &Path<'_>,
    errors: &mut Errors,
) {
    require(gateway, &path.child("gateway"), errors);
    require(system, &path.child("system"), errors);
    require(volume, &path.child("volumeName"), errors);
}

pub fn validate_storage_os_names(
    name: &str,
    namespace: &str,
    path: &Path<'_>,
    errors: &mut Errors,
) {
    let at = path.child("volumeName");
    require(name, &at, errors);
    if !name.is_empty() {
        errors.invalid_each(&at, name, text::dns1123_label(name));
    }
    if !namespace.is_empty() {
        errors.invalid_each(
            &path.child("volumeNamespace"),
            namespace,
            text::dns1123_label(namespace),
        );
    }
}

pub fn validate_flex(
    driver: &str,
    options: Option<&BTreeMap<String, String>>,
    path: &Path<'_>,
    errors: &mut Errors,
) {
    require(driver, &path.child("driver"), errors);
    validate_flex_options(options, path, errors);
}

/// Drivers' options may not use our own prefixes.
fn validate_flex_options(
    options: Option<&BTreeMap<String, String>>,
    path: &Path<'_>,
    errors: &mut Errors,
) {
    let path = path.child("options");
    for key in options.into_iter().flatten().map(|(key, _)| key) {
        let namespace = key
            .split_once('/')
            .map_or(key.as_str(), |(namespace, _)| namespace);
        let normalized = format!(".{}", namespace.to_lowercase());
        if normalized.ends_with(".kubernetes.io") || normalized.ends_with(".k8s.io") {
            errors.invalid(
                &path.key(key),
                key,
                "kubernetes.io and k8s.io namespaces are reserved",
            );
        }
    }
}

pub fn validate_csi_driver_name(name: &str, path: &Path<'_>, errors: &mut Errors) {
    if name.is_empty() {
        errors.required(path, "");
        return;
    }
    if name.len() > 63 {
        errors.too_long(path, 63);
    }
    errors.invalid_each(path, name, text::dns1123_subdomain(&name.to_lowercase()));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn initiators() {
        for (name, good) in [
            ("iqn.2001-04.com.example:storage.disk1", true),
            ("iqn.2001-04.com.example", false),
            ("iqn.2001.com.example:a", false),
            ("eui.0123456789abcdef", true),
            ("eui.0123", false),
            ("naa.0123456789abcdef0123456789abcdef", true),
            ("naa.0123456789abcdef", false),
            ("abc", false),
        ] {
            let mut errors = Errors::default();
            validate_iqn(name, "must be valid format", &Path::new("iqn"), &mut errors);
            assert_eq!(errors.is_empty(), good, "{name}");
        }
    }
}
