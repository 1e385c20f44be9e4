//! Objects as kube-apiserver's messages show them: its internal structs as JSON (Go's field names and order, every
//! field, nil as `null`).
//!
//! Bad values stand on one line. The refusal of an update shows how old and new differ: both indented, as a unified diff
//! with Python difflib's matching. [`INTERNAL`] says how the structs look; [`unified_diff`] is the matching.

use std::{
    collections::{HashMap, VecDeque},
    ops::Range,
};

use k8s_openapi::api::core::v1::{
    EphemeralContainer, PersistentVolumeClaimSpec, PersistentVolumeSpec, PodSpec,
};
use serde::Serialize;
use serde_json::{Map, Value};

use crate::field::{Bad, Errors, IMMUTABLE, Path};

/// The internal structs: a name, then one field a word, `GoName:type` or `GoName=jsonName:type` where the two names
/// differ by more than case. `s` a string, `i` a number, `b` a flag, `q` a quantity, `-` null if missing, `?` left out if
/// missing (types of meta/v1), `T` a struct, `*T` a pointer to one, `[T` a list of them.
const INTERNAL: &str = "
PodSpec Volumes:[Volume InitContainers:[Container Containers:[Container EphemeralContainers:[EphemeralContainer
 RestartPolicy:s TerminationGracePeriodSeconds:- ActiveDeadlineSeconds:- DNSPolicy:s NodeSelector:-
 ServiceAccountName:s AutomountServiceAccountToken:- NodeName:s SecurityContext:*PodSecurityContext
 ImagePullSecrets:[Name Hostname:s Subdomain:s SetHostnameAsFQDN:- Affinity:*Affinity SchedulerName:s
 Tolerations:[Toleration HostAliases:[HostAlias PriorityClassName:s Priority:- PreemptionPolicy:-
 DNSConfig:*PodDNSConfig ReadinessGates:[PodReadinessGate RuntimeClassName:- Overhead:- EnableServiceLinks:-
 TopologySpreadConstraints:[TopologySpreadConstraint OS:*Name SchedulingGates:[Name ResourceClaims:[PodResourceClaim
 Resources:*ResourceRequirements HostnameOverride:- SchedulingGroup:*PodSchedulingGroup
PodSchedulingGroup PodGroupName:-
Name Name:s
Volume Name:s HostPath:*HostPath EmptyDir:*EmptyDir GCEPersistentDisk:*GCEPersistentDisk
 AWSElasticBlockStore:*AWSElasticBlockStore GitRepo:*GitRepo Secret:*SecretVolume NFS:*NFS ISCSI:*ISCSI
 Glusterfs:*Glusterfs PersistentVolumeClaim:*ClaimVolume RBD:*RBD Quobyte:*Quobyte FlexVolume:*Flex Cinder:*Cinder
 CephFS:*CephFS Flocker:*Flocker DownwardAPI:*DownwardAPIVolume FC:*FC AzureFile:*AzureFile ConfigMap:*ConfigMapVolume
 VsphereVolume:*Vsphere AzureDisk:*AzureDisk PhotonPersistentDisk:*Photon Projected:*Projected PortworxVolume:*Portworx
 ScaleIO:*ScaleIO StorageOS:*StorageOS CSI:*CSI Ephemeral:*Ephemeral Image:*Image
HostPath Path:s Type:-
EmptyDir Medium:s SizeLimit:-
GCEPersistentDisk PDName:s FSType:s Partition:i ReadOnly:b
AWSElasticBlockStore VolumeID:s FSType:s Partition:i ReadOnly:b
GitRepo Repository:s Revision:s Directory:s
SecretVolume SecretName:s Items:[KeyToPath DefaultMode:- Optional:-
NFS Server:s Path:s ReadOnly:b
ISCSI TargetPortal:s IQN:s Lun:i ISCSIInterface:s FSType:s ReadOnly:b Portals:- DiscoveryCHAPAuth=chapAuthDiscovery:b
 SessionCHAPAuth=chapAuthSession:b SecretRef:*Name InitiatorName:-
Glusterfs EndpointsName=endpoints:s Path:s ReadOnly:b
ClaimVolume ClaimName:s ReadOnly:b
RBD CephMonitors=monitors:- RBDImage=image:s FSType:s RBDPool=pool:s RadosUser=user:s Keyring:s SecretRef:*Name
 ReadOnly:b
Quobyte Registry:s Volume:s ReadOnly:b User:s Group:s Tenant:s
Flex Driver:s FSType:s SecretRef:*Name ReadOnly:b Options:-
Cinder VolumeID:s FSType:s ReadOnly:b SecretRef:*Name
CephFS Monitors:- Path:s User:s SecretFile:s SecretRef:*Name ReadOnly:b
Flocker DatasetName:s DatasetUUID:s
DownwardAPIVolume Items:[DownwardAPIFile DefaultMode:-
DownwardAPIFile Path:s FieldRef:*FieldRef ResourceFieldRef:*ResourceFieldRef Mode:-
FC TargetWWNs:- Lun:- FSType:s ReadOnly:b WWIDs:-
AzureFile SecretName:s ShareName:s ReadOnly:b
ConfigMapVolume Name:s Items:[KeyToPath DefaultMode:- Optional:-
Vsphere VolumePath:s FSType:s StoragePolicyName:s StoragePolicyID:s
AzureDisk DiskName:s DataDiskURI=diskURI:s CachingMode:- FSType:- ReadOnly:- Kind:-
Photon PdID:s FSType:s
Projected Sources:[Projection DefaultMode:-
Projection Secret:*KeysProjection DownwardAPI:*DownwardAPIProjection ConfigMap:*KeysProjection
 ServiceAccountToken:*TokenProjection ClusterTrustBundle:*TrustProjection PodCertificate:*CertificateProjection
KeysProjection Name:s Items:[KeyToPath Optional:-
DownwardAPIProjection Items:[DownwardAPIFile
TokenProjection Audience:s ExpirationSeconds:i Path:s
TrustProjection Name:- SignerName:- LabelSelector:*LabelSelector Optional:- Path:s
CertificateProjection SignerName:s KeyType:s MaxExpirationSeconds:- CredentialBundlePath:s KeyPath:s
 CertificateChainPath:s UserAnnotations:-
KeyToPath Key:s Path:s Mode:-
Portworx VolumeID:s FSType:s ReadOnly:b
ScaleIO Gateway:s System:s SecretRef:*Name SSLEnabled:b ProtectionDomain:s StoragePool:s StorageMode:s VolumeName:s
 FSType:s ReadOnly:b
StorageOS VolumeName:s VolumeNamespace:s FSType:s ReadOnly:b SecretRef:*Name
CSI Driver:s ReadOnly:- FSType:- VolumeAttributes:- NodePublishSecretRef:*Name
Ephemeral VolumeClaimTemplate:*ClaimTemplate
ClaimTemplate name:? generateName:? namespace:? labels:? annotations:? ownerReferences:? finalizers:? Spec:ClaimSpec
LabelSelector matchLabels:? matchExpressions:?
ClaimSpec AccessModes:- Selector:*LabelSelector Resources:VolumeResources VolumeName:s StorageClassName:- VolumeMode:-
 DataSource:*DataSource DataSourceRef:*DataSourceRef VolumeAttributesClassName:-
VolumeResources Limits:- Requests:-
DataSource APIGroup:- Kind:s Name:s
DataSourceRef APIGroup:- Kind:s Name:s Namespace:-
Image Reference:s PullPolicy:s
Container Name:s Image:s Command:- Args:- WorkingDir:s Ports:[Port EnvFrom:[EnvFrom Env:[Env
 Resources:ResourceRequirements ResizePolicy:[ResizePolicy RestartPolicy:- RestartPolicyRules:[RestartRule
 VolumeMounts:[VolumeMount VolumeDevices:[VolumeDevice LivenessProbe:*Probe ReadinessProbe:*Probe StartupProbe:*Probe
 Lifecycle:*Lifecycle TerminationMessagePath:s TerminationMessagePolicy:s ImagePullPolicy:s
 SecurityContext:*SecurityContext Stdin:b StdinOnce:b TTY:b
EphemeralContainer Name:s Image:s Command:- Args:- WorkingDir:s Ports:[Port EnvFrom:[EnvFrom Env:[Env
 Resources:ResourceRequirements ResizePolicy:[ResizePolicy RestartPolicy:- RestartPolicyRules:[RestartRule
 VolumeMounts:[VolumeMount VolumeDevices:[VolumeDevice LivenessProbe:*Probe ReadinessProbe:*Probe StartupProbe:*Probe
 Lifecycle:*Lifecycle TerminationMessagePath:s TerminationMessagePolicy:s ImagePullPolicy:s
 SecurityContext:*SecurityContext Stdin:b StdinOnce:b TTY:b TargetContainerName:s
Port Name:s HostPort:i ContainerPort:i Protocol:s HostIP:s
EnvFrom Prefix:s ConfigMapRef:*OptionalName SecretRef:*OptionalName
OptionalName Name:s Optional:-
Env Name:s Value:s ValueFrom:*EnvSource
EnvSource FieldRef:*FieldRef ResourceFieldRef:*ResourceFieldRef ConfigMapKeyRef:*KeyRef SecretKeyRef:*KeyRef
 FileKeyRef:*FileKeyRef
FieldRef APIVersion:s FieldPath:s
ResourceFieldRef ContainerName:s Resource:s Divisor:q
KeyRef Name:s Key:s Optional:-
FileKeyRef VolumeName:s Path:s Key:s Optional:-
ResourceRequirements Limits:- Requests:- Claims:[ResourceClaim
ResourceClaim Name:s Request:s
ResizePolicy ResourceName:s RestartPolicy:s
RestartRule Action:s ExitCodes:*RestartExitCodes
RestartExitCodes Operator:s Values:-
VolumeMount Name:s ReadOnly:b RecursiveReadOnly:- MountPath:s SubPath:s MountPropagation:- SubPathExpr:s
VolumeDevice Name:s DevicePath:s
Probe Exec:*Exec HTTPGet:*HTTPGet TCPSocket:*TCPSocket GRPC:*GRPC InitialDelaySeconds:i TimeoutSeconds:i
 PeriodSeconds:i SuccessThreshold:i FailureThreshold:i TerminationGracePeriodSeconds:-
Exec Command:-
HTTPGet Path:s Port:i Host:s Scheme:s HTTPHeaders:[NamedValue
NamedValue Name:s Value:s
TCPSocket Port:i Host:s
GRPC Port:i Service:-
Lifecycle PostStart:*Handler PreStop:*Handler StopSignal:-
Handler Exec:*Exec HTTPGet:*HTTPGet TCPSocket:*TCPSocket Sleep:*Sleep
Sleep Seconds:i
SecurityContext Capabilities:*Capabilities Privileged:- SELinuxOptions:*SELinux WindowsOptions:*Windows RunAsUser:-
 RunAsGroup:- RunAsNonRoot:- ReadOnlyRootFilesystem:- AllowPrivilegeEscalation:- ProcMount:- SeccompProfile:*Profile
 AppArmorProfile:*Profile
Capabilities Add:- Drop:-
SELinux User:s Role:s Type:s Level:s
Windows GMSACredentialSpecName:- GMSACredentialSpec:- RunAsUserName:- HostProcess:-
Profile Type:s LocalhostProfile:-
PodSecurityContext HostNetwork:b HostPID:b HostIPC:b ShareProcessNamespace:- HostUsers:- SELinuxOptions:*SELinux
 WindowsOptions:*Windows RunAsUser:- RunAsGroup:- RunAsNonRoot:- SupplementalGroups:- SupplementalGroupsPolicy:-
 FSGroup:- FSGroupChangePolicy:- Sysctls:[NamedValue SeccompProfile:*Profile AppArmorProfile:*Profile
 SELinuxChangePolicy:-
Affinity NodeAffinity:*NodeAffinity PodAffinity:*PodAffinity PodAntiAffinity:*PodAffinity
NodeAffinity RequiredDuringSchedulingIgnoredDuringExecution:*NodeSelector
 PreferredDuringSchedulingIgnoredDuringExecution:[PreferredNode
NodeSelector NodeSelectorTerms:[NodeTerm
NodeTerm MatchExpressions:[NodeRequirement MatchFields:[NodeRequirement
NodeRequirement Key:s Operator:s Values:-
PreferredNode Weight:i Preference:NodeTerm
PodAffinity RequiredDuringSchedulingIgnoredDuringExecution:[PodTerm
 PreferredDuringSchedulingIgnoredDuringExecution:[PreferredPod
PodTerm LabelSelector:*LabelSelector Namespaces:- TopologyKey:s NamespaceSelector:*LabelSelector MatchLabelKeys:- MismatchLabelKeys:-
PreferredPod Weight:i PodAffinityTerm:PodTerm
Toleration Key:s Operator:s Value:s Effect:s TolerationSeconds:-
HostAlias IP:s Hostnames:-
PodDNSConfig Nameservers:- Searches:- Options:[DNSOption
DNSOption Name:s Value:-
PodReadinessGate ConditionType:s
TopologySpreadConstraint MaxSkew:i TopologyKey:s WhenUnsatisfiable:s LabelSelector:*LabelSelector MinDomains:-
 NodeAffinityPolicy:- NodeTaintsPolicy:- MatchLabelKeys:-
PodResourceClaim Name:s ResourceClaimName:- ResourceClaimTemplateName:-
PodTemplate name:? generateName:? namespace:? labels:? annotations:? ownerReferences:? finalizers:? Spec:PodSpec
PodFailurePolicy Rules:[PodFailureRule
PodFailureRule Action:s OnExitCodes:*PodFailureExitCodes OnPodConditions:[PodFailureCondition
PodFailureExitCodes ContainerName:- Operator:s Values:-
PodFailureCondition Type:s Status:s
SuccessPolicy Rules:[SuccessRule
SuccessRule SucceededIndexes:- SucceededCount:-
ScopeRequirement ScopeName:s Operator:s Values:-
VolumeNodeAffinity Required:*NodeSelector
CSINodeDriver Name:s NodeID:s TopologyKeys:- Allocatable:*CSINodeResources
CSINodeResources Count:-
EventSeries Count:i LastObservedTime:-
EventSource Component:s Host:s
FlowSchemaSpec PriorityLevelConfiguration:Name MatchingPrecedence:i DistinguisherMethod:*Distinguisher Rules:[FlowRule
Distinguisher Type:s
FlowRule Subjects:[FlowSubject ResourceRules:[FlowResourceRule NonResourceRules:[FlowNonResourceRule
FlowSubject Kind:s User:*Name Group:*Name ServiceAccount:*FlowAccount
FlowAccount Namespace:s Name:s
FlowResourceRule Verbs:- APIGroups:- Resources:- ClusterScope:b Namespaces:-
FlowNonResourceRule Verbs:- NonResourceURLs:-
PriorityLevelSpec Type:s Limited:*LimitedLevel Exempt:*ExemptLevel
ExemptLevel NominalConcurrencyShares:- LendablePercent:-
LimitedLevel NominalConcurrencyShares:i LimitResponse:LimitResponse LendablePercent:- BorrowingLimitPercent:-
LimitResponse Type:s Queuing:*Queuing
Queuing Queues:i HandSize:i QueueLengthLimit:i
ParentReference Group:s Resource:s Namespace:s Name:s
VolumeAttachmentSpec Attacher:s Source:VolumeAttachmentSource NodeName:s
VolumeAttachmentSource PersistentVolumeName:- InlineVolumeSpec:-
ResourceClaimTemplateSpec name:? generateName:? namespace:? labels:? annotations:? ownerReferences:? finalizers:?
 Spec:ResourceClaimSpec
ResourceClaimSpec Devices:DeviceClaim
DeviceClaim Requests:[DeviceRequest Constraints:[DeviceConstraint Config:[DeviceConfiguration
DeviceRequest Name:s Exactly:*ExactDeviceRequest FirstAvailable:[DeviceSubRequest
ExactDeviceRequest DeviceClassName:s Selectors:[DeviceSelector AllocationMode:s Count:i AdminAccess:-
 Tolerations:[Toleration Capacity:*CapacityRequirements
DeviceSubRequest Name:s DeviceClassName:s Selectors:[DeviceSelector AllocationMode:s Count:i Tolerations:[Toleration
 Capacity:*CapacityRequirements
DeviceSelector CEL:*DeviceExpression
DeviceExpression Expression:s
CapacityRequirements Requests:-
DeviceConstraint Requests:- MatchAttribute:- DistinctAttribute:-
DeviceConfiguration Requests:- Opaque:*OpaqueConfiguration
OpaqueConfiguration Driver:s Parameters:-
PersistentVolumeSource GCEPersistentDisk:*GCEPersistentDisk AWSElasticBlockStore:*AWSElasticBlockStore
 HostPath:*HostPath Glusterfs:*PersistentGlusterfs NFS:*NFS RBD:*PersistentRBD Quobyte:*Quobyte ISCSI:*PersistentISCSI
 FlexVolume:*PersistentFlex Cinder:*PersistentCinder CephFS:*PersistentCephFS FC:*FC Flocker:*Flocker
 AzureFile:*PersistentAzureFile VsphereVolume:*Vsphere AzureDisk:*AzureDisk PhotonPersistentDisk:*Photon
 PortworxVolume:*Portworx ScaleIO:*PersistentScaleIO Local:*Local StorageOS:*PersistentStorageOS CSI:*PersistentCSI
SecretReference Name:s Namespace:s
ObjectReference Kind:s Namespace:s Name:s UID:s APIVersion:s ResourceVersion:s FieldPath:s
PersistentGlusterfs EndpointsName=endpoints:s Path:s ReadOnly:b EndpointsNamespace:-
PersistentRBD CephMonitors=monitors:- RBDImage=image:s FSType:s RBDPool=pool:s RadosUser=user:s Keyring:s
 SecretRef:*SecretReference ReadOnly:b
PersistentISCSI TargetPortal:s IQN:s Lun:i ISCSIInterface:s FSType:s ReadOnly:b Portals:-
 DiscoveryCHAPAuth=chapAuthDiscovery:b SessionCHAPAuth=chapAuthSession:b SecretRef:*SecretReference InitiatorName:-
PersistentFlex Driver:s FSType:s SecretRef:*SecretReference ReadOnly:b Options:-
PersistentCinder VolumeID:s FSType:s ReadOnly:b SecretRef:*SecretReference
PersistentCephFS Monitors:- Path:s User:s SecretFile:s SecretRef:*SecretReference ReadOnly:b
PersistentAzureFile SecretName:s ShareName:s ReadOnly:b SecretNamespace:-
PersistentScaleIO Gateway:s System:s SecretRef:*SecretReference SSLEnabled:b ProtectionDomain:s StoragePool:s
 StorageMode:s VolumeName:s FSType:s ReadOnly:b
Local Path:s FSType:-
PersistentStorageOS VolumeName:s VolumeNamespace:s FSType:s ReadOnly:b SecretRef:*ObjectReference
PersistentCSI Driver:s VolumeHandle:s ReadOnly:b FSType:s VolumeAttributes:- ControllerPublishSecretRef:*SecretReference
 NodeStageSecretRef:*SecretReference NodePublishSecretRef:*SecretReference ControllerExpandSecretRef:*SecretReference
 NodeExpandSecretRef:*SecretReference
";

/// What stands in the pod spec on the wire, and in its security context within kube-apiserver.
const IN_SECURITY_CONTEXT: [&str; 5] = [
    "hostNetwork",
    "hostPID",
    "hostIPC",
    "shareProcessNamespace",
    "hostUsers",
];

pub fn pod_spec_diff(old: &PodSpec, new: &PodSpec) -> String {
    diff("PodSpec", old, new)
}

pub fn ephemeral_container_diff(old: &EphemeralContainer, new: &EphemeralContainer) -> String {
    diff("EphemeralContainer", old, new)
}

pub fn claim_spec_diff(old: &PersistentVolumeClaimSpec, new: &PersistentVolumeClaimSpec) -> String {
    diff("ClaimSpec", old, new)
}

/// Of the sources only.
pub fn volume_source_diff(old: &PersistentVolumeSpec, new: &PersistentVolumeSpec) -> String {
    diff("PersistentVolumeSource", old, new)
}

/// The unified diff that turns `old` into `new`; empty if they do not differ.
fn diff<T: Serialize>(name: &str, old: &T, new: &T) -> String {
    let structs = Structs::read(INTERNAL);
    let lines = |value: &T| -> Vec<String> {
        let mut text = String::new();
        let value = serde_json::to_value(value).unwrap_or_default();
        structs.shown(&value, name).write(Some(0), &mut text);
        text.push('\n');
        text.split_inclusive('\n').map(str::to_owned).collect()
    };
    unified_diff(&lines(old), &lines(new))
}

/// A bad value that is one of the structs, or a list of them.
pub fn bad(name: &str, value: &impl Serialize) -> Bad {
    let structs = Structs::read(INTERNAL);
    let shown = match serde_json::to_value(value).unwrap_or_default() {
        Value::Null => Shown::text("null"),
        Value::Array(items) => {
            let items = items.iter().map(|item| structs.shown(item, name));
            Shown::List(items.collect())
        }
        value => structs.shown(&value, name),
    };
    let mut text = String::new();
    shown.write(None, &mut text);
    Bad::shown(text)
}

/// A struct that may not change.
pub fn immutable<T: PartialEq + Serialize>(
    name: &str,
    path: &Path<'_>,
    new: &T,
    old: &T,
    errors: &mut Errors,
) {
    if new != old {
        errors.invalid(path, bad(name, new), IMMUTABLE);
    }
}

struct Structs {
    fields: HashMap<&'static str, Vec<InternalField>>,
}

struct InternalField {
    go: &'static str,
    json: String,
    ty: &'static str,
}

/// JSON with its fields in order.
enum Shown {
    Text(String),
    List(Vec<Shown>),
    Object(Vec<(String, Shown)>),
}

impl Structs {
    fn read(text: &'static str) -> Self {
        let mut fields: HashMap<&str, Vec<InternalField>> = HashMap::new();
        let mut current = "";
        for word in text.split_whitespace() {
            let Some((names, ty)) = word.split_once(':') else {
                current = word;
                continue;
            };
            let (go, json) = names.split_once('=').unwrap_or((names, names));
            fields.entry(current).or_default().push(InternalField {
                go,
                json: json.to_ascii_lowercase(),
                ty,
            });
        }
        Self { fields }
    }

    fn shown(&self, value: &Value, name: &str) -> Shown {
        let mut by_name: HashMap<String, Value> = HashMap::new();
        for (name, value) in value.as_object().into_iter().flatten() {
            by_name.insert(name.to_ascii_lowercase(), value.clone());
        }
        match name {
            // What embeds meta/v1's ObjectMeta has its fields.
            "ClaimTemplate" | "PodTemplate" | "ResourceClaimTemplateSpec" => {
                if let Some(Value::Object(metadata)) = by_name.remove("metadata") {
                    let fields = metadata.into_iter();
                    by_name.extend(fields.map(|(name, value)| (name.to_ascii_lowercase(), value)));
                }
            }
            "PodSpec" => {
                let context = by_name
                    .entry("securitycontext".to_owned())
                    .or_insert_with(|| Value::Object(Map::new()));
                for field in IN_SECURITY_CONTEXT {
                    if let Some(flag) = value.get(field) {
                        context[field] = flag.clone();
                    }
                }
            }
            _ => {}
        }
        let fields = self.fields.get(name).into_iter().flatten();
        let members = fields.filter_map(|field| {
            let value = by_name.get(field.json.as_str());
            let value = value.filter(|value| !value.is_null());
            if field.ty == "?" && value.is_none() {
                return None;
            }
            Some((field.go.to_owned(), self.field(value, field.ty)))
        });
        Shown::Object(members.collect())
    }

    fn field(&self, value: Option<&Value>, ty: &str) -> Shown {
        match (ty, value) {
            ("s", None) => Shown::text("\"\""),
            ("i", None) => Shown::text("0"),
            ("b", None) => Shown::text("false"),
            ("q", None) => Shown::text("\"0\""),
            ("s" | "i" | "b" | "q" | "-" | "?", Some(value)) => Shown::of(value),
            ("-" | "?", None) => Shown::text("null"),
            _ => match (ty.as_bytes().first(), value) {
                (Some(b'*' | b'['), None) => Shown::text("null"),
                (Some(b'*'), Some(value)) => self.shown(value, &ty[1..]),
                (Some(b'['), Some(value)) => {
                    let items = value.as_array().into_iter().flatten();
                    Shown::List(items.map(|item| self.shown(item, &ty[1..])).collect())
                }
                (_, value) => self.shown(value.unwrap_or(&Value::Null), ty),
            },
        }
    }
}

impl Shown {
    fn text(text: &str) -> Self {
        Self::Text(text.to_owned())
    }

    fn of(value: &Value) -> Self {
        match value {
            Value::Object(object) => {
                let members = object.iter();
                let members = members.map(|(name, value)| (name.clone(), Self::of(value)));
                Self::Object(members.collect())
            }
            Value::Array(items) => Self::List(items.iter().map(Self::of).collect()),
            Value::String(text) => Self::Text(quoted(text)),
            other => Self::Text(other.to_string()),
        }
    }

    /// `depth`: how far it is indented; `None` puts all on one line.
    fn write(&self, depth: Option<usize>, out: &mut String) {
        let deeper = depth.map(|depth| depth + 1);
        match self {
            Self::Text(text) => out.push_str(text),
            Self::List(items) if items.is_empty() => out.push_str("[]"),
            Self::Object(members) if members.is_empty() => out.push_str("{}"),
            Self::List(items) => {
                out.push('[');
                for (i, item) in items.iter().enumerate() {
                    begin(i, deeper, out);
                    item.write(deeper, out);
                }
                break_line(depth, out);
                out.push(']');
            }
            Self::Object(members) => {
                out.push('{');
                for (i, (name, value)) in members.iter().enumerate() {
                    begin(i, deeper, out);
                    out.push_str(&quoted(name));
                    out.push_str(if depth.is_some() { ": " } else { ":" });
                    value.write(deeper, out);
                }
                break_line(depth, out);
                out.push('}');
            }
        }
    }
}

fn begin(index: usize, depth: Option<usize>, out: &mut String) {
    if index > 0 {
        out.push(',');
    }
    break_line(depth, out);
}

fn break_line(depth: Option<usize>, out: &mut String) {
    if let Some(depth) = depth {
        out.push('\n');
        out.extend(std::iter::repeat_n(' ', depth));
    }
}

/// A string as Go's encoder writes it, safe within HTML.
fn quoted(text: &str) -> String {
    let mut out = String::new();
    for c in Value::from(text).to_string().chars() {
        match c {
            '<' | '>' | '&' | '\u{2028}' | '\u{2029}' => {
                out.push_str(&format!("\\u{:04x}", u32::from(c)));
            }
            c => out.push(c),
        }
    }
    out
}

/// Unchanged lines around a change.
const CONTEXT: usize = 3;

/// Where the two texts agree: `len` lines from `old` and from `new` on.
#[derive(Clone, Copy, PartialEq)]
struct Block {
    old: usize,
    new: usize,
    len: usize,
}

/// One change, or one stretch of equal lines.
#[derive(Clone)]
struct Step {
    equal: bool,
    old: Range<usize>,
    new: Range<usize>,
}

fn unified_diff(old: &[String], new: &[String]) -> String {
    let mut out = String::new();
    for group in hunks(steps(old, new)) {
        let (Some(first), Some(last)) = (group.first(), group.last()) else {
            continue;
        };
        out.push_str(&format!(
            "@@ -{} +{} @@\n",
            header(&(first.old.start..last.old.end)),
            header(&(first.new.start..last.new.end)),
        ));
        for step in &group {
            let mut print = |mark: char, lines: &[String]| {
                for line in lines {
                    out.push(mark);
                    out.push_str(line);
                }
            };
            if step.equal {
                print(' ', &old[step.old.clone()]);
            } else {
                print('-', &old[step.old.clone()]);
                print('+', &new[step.new.clone()]);
            }
        }
    }
    out
}

fn header(lines: &Range<usize>) -> String {
    match lines.len() {
        1 => (lines.start + 1).to_string(),
        0 => format!("{},0", lines.start),
        count => format!("{},{count}", lines.start + 1),
    }
}

fn steps(old: &[String], new: &[String]) -> Vec<Step> {
    let mut found = Vec::new();
    let (mut at_old, mut at_new) = (0, 0);
    for block in matching_blocks(old, new) {
        if at_old < block.old || at_new < block.new {
            found.push(Step {
                equal: false,
                old: at_old..block.old,
                new: at_new..block.new,
            });
        }
        (at_old, at_new) = (block.old + block.len, block.new + block.len);
        if block.len > 0 {
            found.push(Step {
                equal: true,
                old: block.old..at_old,
                new: block.new..at_new,
            });
        }
    }
    found
}

/// Cuts long equal stretches down to their edges.
fn hunks(mut steps: Vec<Step>) -> Vec<Vec<Step>> {
    if let Some(first) = steps.first_mut().filter(|step| step.equal) {
        first.old.start = first.old.start.max(first.old.end.saturating_sub(CONTEXT));
        first.new.start = first.new.start.max(first.new.end.saturating_sub(CONTEXT));
    }
    if let Some(last) = steps.last_mut().filter(|step| step.equal) {
        last.old.end = last.old.end.min(last.old.start + CONTEXT);
        last.new.end = last.new.end.min(last.new.start + CONTEXT);
    }
    let mut all = Vec::new();
    let mut group: Vec<Step> = Vec::new();
    for mut step in steps {
        if step.equal && step.old.len() > 2 * CONTEXT {
            group.push(Step {
                equal: true,
                old: step.old.start..step.old.start + CONTEXT,
                new: step.new.start..step.new.start + CONTEXT,
            });
            all.push(std::mem::take(&mut group));
            step.old.start = step.old.end - CONTEXT;
            step.new.start = step.new.end - CONTEXT;
        }
        group.push(step);
    }
    all.push(group);
    all.retain(|group| group.iter().any(|step| !step.equal));
    all
}

/// difflib's recursion: the longest common block, then what lies before and behind it. Ends with an empty block.
fn matching_blocks(old: &[String], new: &[String]) -> Vec<Block> {
    let mut positions: HashMap<&str, Vec<usize>> = HashMap::new();
    for (j, line) in new.iter().enumerate() {
        positions.entry(line).or_default().push(j);
    }
    // Lines that stand in many places of a long text start no block (difflib's "autojunk").
    if new.len() >= 200 {
        let many = new.len() / 100 + 1;
        positions.retain(|_, places| places.len() <= many);
    }
    let mut queue = VecDeque::from([(0..old.len(), 0..new.len())]);
    let mut found = Vec::new();
    while let Some((in_old, in_new)) = queue.pop_front() {
        let block = longest_match(old, new, &positions, in_old.clone(), in_new.clone());
        if block.len == 0 {
            continue;
        }
        let (end_old, end_new) = (block.old + block.len, block.new + block.len);
        if in_old.start < block.old && in_new.start < block.new {
            queue.push_back((in_old.start..block.old, in_new.start..block.new));
        }
        if end_old < in_old.end && end_new < in_new.end {
            queue.push_back((end_old..in_old.end, end_new..in_new.end));
        }
        found.push(block);
    }
    found.sort_by_key(|block| (block.old, block.new));
    let mut joined: Vec<Block> = Vec::new();
    for block in found {
        match joined.last_mut() {
            Some(last) if last.old + last.len == block.old && last.new + last.len == block.new => {
                last.len += block.len;
            }
            _ => joined.push(block),
        }
    }
    joined.push(Block {
        old: old.len(),
        new: new.len(),
        len: 0,
    });
    joined
}

fn longest_match(
    old: &[String],
    new: &[String],
    positions: &HashMap<&str, Vec<usize>>,
    in_old: Range<usize>,
    in_new: Range<usize>,
) -> Block {
    let mut best = Block {
        old: in_old.start,
        new: in_new.start,
        len: 0,
    };
    // new index → length of the block that ends there and at the old line before this one
    let mut ending: HashMap<usize, usize> = HashMap::new();
    for i in in_old.clone() {
        let mut next = HashMap::new();
        for &j in positions.get(old[i].as_str()).into_iter().flatten() {
            if j < in_new.start {
                continue;
            }
            if j >= in_new.end {
                break;
            }
            let before = j.checked_sub(1).and_then(|j| ending.get(&j));
            let len = before.copied().unwrap_or(0) + 1;
            next.insert(j, len);
            if len > best.len {
                best = Block {
                    old: i + 1 - len,
                    new: j + 1 - len,
                    len,
                };
            }
        }
        ending = next;
    }
    while best.old > in_old.start
        && best.new > in_new.start
        && old[best.old - 1] == new[best.new - 1]
    {
        best.old -= 1;
        best.new -= 1;
        best.len += 1;
    }
    while best.old + best.len < in_old.end
        && best.new + best.len < in_new.end
        && old[best.old + best.len] == new[best.new + best.len]
    {
        best.len += 1;
    }
    best
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn spec(value: Value) -> PodSpec {
        serde_json::from_value(value).expect("a pod spec")
    }

    #[test]
    fn every_type_named_is_described() {
        let structs = Structs::read(INTERNAL);
        for field in structs.fields.values().flatten() {
            let ty = field.ty.trim_start_matches(['*', '[']);
            assert!(
                matches!(ty, "s" | "i" | "b" | "q" | "-" | "?") || structs.fields.contains_key(ty),
                "{}: {ty}",
                field.go
            );
        }
    }

    #[test]
    fn every_field_of_a_pod_spec_is_in_the_table() {
        let structs = Structs::read(INTERNAL);
        for (internal, name) in [
            ("PodSpec", "PodSpec"),
            ("Container", "Container"),
            ("EphemeralContainer", "EphemeralContainer"),
            ("Volume", "Volume"),
            ("Probe", "Probe"),
            ("PodSecurityContext", "PodSecurityContext"),
            ("SecurityContext", "SecurityContext"),
            ("ClaimSpec", "PersistentVolumeClaimSpec"),
            ("PersistentCSI", "CSIPersistentVolumeSource"),
        ] {
            let ty = skep_schema::table::definition(&format!("io.k8s.api.core.v1.{name}"));
            let ty = ty.expect(name);
            for field in &ty.node().object().expect("an object").fields {
                let known = structs.fields[internal]
                    .iter()
                    .any(|one| one.json == field.name.to_ascii_lowercase());
                let moved = IN_SECURITY_CONTEXT.contains(&field.name.as_str())
                    || field.name == "serviceAccount";
                assert!(known || moved, "{name}.{}", field.name);
            }
        }
    }

    #[test]
    fn one_changed_field_is_one_hunk() {
        let old = json!({"containers": [{"name": "c", "image": "i<j"}], "hostNetwork": true});
        let mut new = old.clone();
        new["containers"][0]["ports"] = json!([{"containerPort": 80}]);
        let diff = pod_spec_diff(&spec(old), &spec(new));
        assert_eq!(
            diff,
            concat!(
                "@@ -8,7 +8,15 @@\n",
                "    \"Command\": null,\n",
                "    \"Args\": null,\n",
                "    \"WorkingDir\": \"\",\n",
                "-   \"Ports\": null,\n",
                "+   \"Ports\": [\n",
                "+    {\n",
                "+     \"Name\": \"\",\n",
                "+     \"HostPort\": 0,\n",
                "+     \"ContainerPort\": 80,\n",
                "+     \"Protocol\": \"\",\n",
                "+     \"HostIP\": \"\"\n",
                "+    }\n",
                "+   ],\n",
                "    \"EnvFrom\": null,\n",
                "    \"Env\": null,\n",
                "    \"Resources\": {\n",
            )
        );
    }

    #[test]
    fn the_same_spec_has_no_diff() {
        let one = spec(json!({"containers": []}));
        assert_eq!(pod_spec_diff(&one, &one.clone()), "");
    }
}
