//! Approves the certificate requests of nodes, signs what is approved, and removes old requests.
//!
//! Watches: CertificateSigningRequest, Node. Writes: CertificateSigningRequest.
//!
//! Approved without a person: a client certificate `system:node:NAME` asked for by a bootstrap token or by that node
//! itself, and a serving certificate asked for by the node it names, for addresses that are the node's.

use std::{net::IpAddr, sync::Arc, time::Duration};

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::{
    ByteString,
    api::{
        certificates::v1::{CertificateSigningRequest, CertificateSigningRequestCondition},
        core::v1::Node,
    },
    apimachinery::pkg::apis::meta::v1::Time,
};
use kube::api::{DeleteParams, Patch, PatchParams, PostParams};
use rcgen::{
    CertificateSigningRequestParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};
use serde_json::json;
use skep_client::{Action, Informer, ObjectKey, writes};
use time::OffsetDateTime;
use x509_parser::{
    certification_request::X509CertificationRequest,
    extensions::{GeneralName, ParsedExtension},
    prelude::FromDer,
};

use crate::context::{Authority, Context, Doing, Error};

const WORKERS: usize = 2;
const CLIENT_KUBELET: &str = "kubernetes.io/kube-apiserver-client-kubelet";
const CLIENT: &str = "kubernetes.io/kube-apiserver-client";
const SERVING: &str = "kubernetes.io/kubelet-serving";
const NODES: &str = "system:nodes";
const BOOTSTRAPPERS: &str = "system:bootstrappers";
/// Clocks of nodes may be behind ours.
const BACKDATE: Duration = Duration::from_secs(300);
const MAX_VALIDITY: Duration = Duration::from_secs(365 * 24 * 3600);
const MIN_VALIDITY: Duration = Duration::from_secs(600);
/// How long requests are kept, by state; as upstream.
const KEEP_PENDING: Duration = Duration::from_secs(24 * 3600);
const KEEP_DECIDED: Duration = Duration::from_secs(3600);

pub async fn run(context: Arc<Context>) {
    let controller = Arc::new(Controller {
        requests: context.informers.of(),
        nodes: context.informers.of(),
        context: context.clone(),
    });
    let mut work = context.work();
    work.feed_self(&controller.requests);
    let watcher = controller.clone();
    work.feed(&controller.nodes, move |change| {
        // A node that registers, or learns its addresses, may make its request acceptable.
        let addresses = |node: &Arc<Node>| {
            node.status
                .as_ref()
                .and_then(|status| status.addresses.clone())
        };
        if change.is_delete()
            || change.old.as_ref().map(addresses) == change.new.as_ref().map(addresses)
        {
            return Vec::new();
        }
        let open = watcher
            .requests
            .all()
            .into_iter()
            .filter(|request| decision(request).is_none());
        open.map(|request| ObjectKey::of(&request.metadata))
            .collect()
    });
    work.run(
        "certificates",
        WORKERS,
        controller,
        |controller, key| async move { controller.reconcile(key).await },
    )
    .await;
}

struct Controller {
    requests: Informer<CertificateSigningRequest>,
    nodes: Informer<Node>,
    context: Arc<Context>,
}

impl Controller {
    async fn reconcile(&self, key: ObjectKey) -> Result<Action, Error> {
        let Some(request) = self.requests.get(&key) else {
            return Ok(Action::done());
        };
        let api = self.context.cluster_api::<CertificateSigningRequest>();
        let now = self.context.now();
        if let Some(left) = time_left(&request, now)
            && left.is_zero()
        {
            writes::delete(
                &api,
                &key.name,
                request.metadata.uid.clone(),
                DeleteParams::default(),
            )
            .await
            .doing("delete an old certificate request")?;
            return Ok(Action::done());
        }
        let wait = Action::done().sooner(time_left(&request, now));
        match decision(&request) {
            None => {
                let node = |name: &str| self.nodes.get(&ObjectKey::cluster(name));
                let Some(message) = approval(&request, node) else {
                    return Ok(wait);
                };
                self.approve(&key, message).await?;
                tracing::info!(kind = "CertificateSigningRequest", name = %key.name, reason = "AutoApproved", "approved");
                Ok(wait)
            }
            Some(Decision::Approved) if !has_certificate(&request) => {
                let Some(authority) = &self.context.config.signer else {
                    return Ok(wait);
                };
                if ![CLIENT_KUBELET, CLIENT, SERVING].contains(&request.spec.signer_name.as_str()) {
                    return Ok(wait);
                }
                let status = match sign(&request, authority, now) {
                    Ok(certificate) => {
                        tracing::info!(kind = "CertificateSigningRequest", name = %key.name, "signed");
                        json!({ "certificate": ByteString(certificate.into_bytes()) })
                    }
                    Err(problem) => {
                        let mut conditions = request
                            .status
                            .as_ref()
                            .and_then(|status| status.conditions.clone())
                            .unwrap_or_default();
                        conditions.push(new_condition(
                            "Failed",
                            "SignerValidationFailure",
                            &problem,
                            now,
                        ));
                        json!({ "conditions": conditions })
                    }
                };
                let patch = json!({ "metadata": { "uid": request.metadata.uid,
                    "resourceVersion": request.metadata.resource_version }, "status": status });
                match api
                    .patch_status(&key.name, &PatchParams::default(), &Patch::Merge(patch))
                    .await
                {
                    Ok(_) => Ok(wait),
                    Err(error) if writes::is_not_found(&error) => Ok(Action::done()),
                    Err(error) => Err(error).doing("write the certificate"),
                }
            }
            Some(_) => Ok(wait),
        }
    }

    async fn approve(&self, key: &ObjectKey, message: &str) -> Result<(), Error> {
        let api = self.context.cluster_api::<CertificateSigningRequest>();
        let Some(mut request) = api
            .get_opt(&key.name)
            .await
            .doing("read the certificate request")?
        else {
            return Ok(());
        };
        if decision(&request).is_some() {
            return Ok(());
        }
        let condition = new_condition("Approved", "AutoApproved", message, self.context.now());
        request
            .status
            .get_or_insert_default()
            .conditions
            .get_or_insert_default()
            .push(condition);
        api.replace_subresource("approval", &key.name, &PostParams::default(), &request)
            .await
            .map(drop)
            .doing("approve the certificate request")
    }
}

fn new_condition(
    type_: &str,
    reason: &str,
    message: &str,
    now: Timestamp,
) -> CertificateSigningRequestCondition {
    CertificateSigningRequestCondition {
        type_: type_.into(),
        status: "True".into(),
        reason: Some(reason.into()),
        message: Some(message.into()),
        last_update_time: Some(Time(now)),
        last_transition_time: Some(Time(now)),
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Decision {
    Approved,
    Refused,
}

fn decision(request: &CertificateSigningRequest) -> Option<Decision> {
    let conditions = request.status.as_ref()?.conditions.as_ref()?;
    let has = |type_: &str| conditions.iter().any(|condition| condition.type_ == type_);
    if has("Denied") || has("Failed") {
        Some(Decision::Refused)
    } else {
        has("Approved").then_some(Decision::Approved)
    }
}

fn has_certificate(request: &CertificateSigningRequest) -> bool {
    request
        .status
        .as_ref()
        .and_then(|status| status.certificate.as_ref())
        .is_some_and(|certificate| !certificate.0.is_empty())
}

/// Until the request may be forgotten. `None`: it has no age.
fn time_left(request: &CertificateSigningRequest, now: Timestamp) -> Option<Duration> {
    let created = request.metadata.creation_timestamp.as_ref()?.0;
    let keep = if decision(request).is_some() {
        KEEP_DECIDED
    } else {
        KEEP_PENDING
    };
    let end = created
        .saturating_add(SignedDuration::try_from(keep).ok()?)
        .ok()?;
    Some(crate::pods::until(now, end))
}

/// What the encoded request asks for.
#[derive(Debug, Default, PartialEq)]
struct Wish {
    common_name: String,
    organizations: Vec<String>,
    dns: Vec<String>,
    ips: Vec<IpAddr>,
    /// Names of other types, which nothing of ours asks for.
    others: bool,
}

fn read(pem: &[u8]) -> Result<Wish, String> {
    let (_, pem) = x509_parser::pem::parse_x509_pem(pem)
        .map_err(|error| format!("spec.request is not PEM: {error}"))?;
    let (_, request) = X509CertificationRequest::from_der(&pem.contents)
        .map_err(|error| format!("spec.request is not a certificate request: {error}"))?;
    let subject = &request.certification_request_info.subject;
    let text = |value: &x509_parser::x509::AttributeTypeAndValue<'_>| {
        value.as_str().unwrap_or_default().to_owned()
    };
    let mut wish = Wish {
        common_name: subject
            .iter_common_name()
            .map(text)
            .next()
            .unwrap_or_default(),
        organizations: subject.iter_organization().map(text).collect(),
        ..Wish::default()
    };
    for extension in request.requested_extensions().into_iter().flatten() {
        let ParsedExtension::SubjectAlternativeName(names) = extension else {
            continue;
        };
        for name in &names.general_names {
            match name {
                GeneralName::DNSName(name) => wish.dns.push((*name).to_owned()),
                GeneralName::IPAddress(bytes) => {
                    match (<[u8; 4]>::try_from(*bytes), <[u8; 16]>::try_from(*bytes)) {
                        (Ok(v4), _) => wish.ips.push(v4.into()),
                        (_, Ok(v6)) => wish.ips.push(v6.into()),
                        _ => wish.others = true,
                    }
                }
                _ => wish.others = true,
            }
        }
    }
    Ok(wish)
}

/// Why the request is approved without a person; `None`: it is not, or not yet.
fn approval(
    request: &CertificateSigningRequest,
    node: impl Fn(&str) -> Option<Arc<Node>>,
) -> Option<&'static str> {
    let wish = read(&request.spec.request.0).ok()?;
    let name = wish
        .common_name
        .strip_prefix("system:node:")
        .filter(|name| !name.is_empty())?;
    if wish.organizations != [NODES] || wish.others {
        return None;
    }
    let username = request.spec.username.as_deref().unwrap_or_default();
    let in_group = |group: &str| request.spec.groups.iter().flatten().any(|own| own == group);
    let is_itself = username == wish.common_name && in_group(NODES);
    match request.spec.signer_name.as_str() {
        CLIENT_KUBELET => {
            if !usages_are(request, "client auth") || !wish.dns.is_empty() || !wish.ips.is_empty() {
                return None;
            }
            if is_itself {
                Some("Auto approving self kubelet client certificate after SubjectAccessReview.")
            } else if in_group(BOOTSTRAPPERS) {
                Some("Auto approving kubelet client certificate after SubjectAccessReview.")
            } else {
                None
            }
        }
        SERVING => {
            if !usages_are(request, "server auth")
                || !is_itself
                || (wish.dns.is_empty() && wish.ips.is_empty())
            {
                return None;
            }
            let node = node(name)?;
            let addresses: Vec<String> = node
                .status
                .iter()
                .flat_map(|status| status.addresses.iter().flatten())
                .map(|address| address.address.clone())
                .collect();
            let owns_dns = |dns: &String| dns == name || addresses.contains(dns);
            let owns_ip = |ip: &IpAddr| {
                addresses
                    .iter()
                    .any(|address| address.parse::<IpAddr>().is_ok_and(|own| own == *ip))
            };
            (wish.dns.iter().all(owns_dns) && wish.ips.iter().all(owns_ip)).then_some(
                "Auto approving kubelet serving certificate for the node's own addresses.",
            )
        }
        _ => None,
    }
}

/// Exactly `purpose`, beside what every TLS key may do.
fn usages_are(request: &CertificateSigningRequest, purpose: &str) -> bool {
    let usages: Vec<&str> = request
        .spec
        .usages
        .iter()
        .flatten()
        .map(String::as_str)
        .collect();
    usages.contains(&purpose)
        && usages
            .iter()
            .all(|usage| [purpose, "digital signature", "key encipherment"].contains(usage))
}

/// The signed certificate as PEM, or what is wrong with the request.
fn sign(
    request: &CertificateSigningRequest,
    authority: &Authority,
    now: Timestamp,
) -> Result<String, String> {
    let text = std::str::from_utf8(&request.spec.request.0)
        .map_err(|_| "spec.request is not PEM".to_owned())?;
    let wish = read(&request.spec.request.0)?;
    let usages: Vec<&str> = request
        .spec
        .usages
        .iter()
        .flatten()
        .map(String::as_str)
        .collect();
    let is_node = wish.common_name.starts_with("system:node:") && wish.organizations == [NODES];
    match request.spec.signer_name.as_str() {
        CLIENT_KUBELET if !is_node || !usages_are(request, "client auth") => {
            return Err("a kubelet client certificate has the subject system:node:NAME in system:nodes and the usage \
                        client auth"
                .into());
        }
        SERVING if !is_node || !usages_are(request, "server auth") => {
            return Err("a kubelet serving certificate has the subject system:node:NAME in system:nodes and the usage \
                        server auth"
                .into());
        }
        CLIENT
            if wish
                .organizations
                .iter()
                .any(|organization| organization == "system:masters") =>
        {
            return Err("a certificate in system:masters is not signed".into());
        }
        _ => {}
    }
    let mut csr =
        CertificateSigningRequestParams::from_pem(text).map_err(|error| error.to_string())?;
    csr.params.is_ca = IsCa::ExplicitNoCa;
    csr.params.key_usages.clear();
    csr.params.extended_key_usages.clear();
    for usage in usages {
        match usage {
            "digital signature" => csr
                .params
                .key_usages
                .push(KeyUsagePurpose::DigitalSignature),
            "key encipherment" => csr.params.key_usages.push(KeyUsagePurpose::KeyEncipherment),
            "client auth" => csr
                .params
                .extended_key_usages
                .push(ExtendedKeyUsagePurpose::ClientAuth),
            "server auth" => csr
                .params
                .extended_key_usages
                .push(ExtendedKeyUsagePurpose::ServerAuth),
            other => {
                return Err(format!(
                    "the usage {other:?} is not signed by {}",
                    request.spec.signer_name
                ));
            }
        }
    }
    let wanted = request
        .spec
        .expiration_seconds
        .and_then(|seconds| u64::try_from(seconds).ok())
        .map(Duration::from_secs);
    let validity = wanted
        .unwrap_or(MAX_VALIDITY)
        .clamp(MIN_VALIDITY, MAX_VALIDITY);
    let now =
        OffsetDateTime::from_unix_timestamp(now.as_second()).map_err(|error| error.to_string())?;
    csr.params.not_before = now - BACKDATE;
    csr.params.not_after = now + validity;
    csr.params.use_authority_key_identifier_extension = true;
    let key = KeyPair::from_pem(&authority.key_pem)
        .map_err(|_| "the cluster's CA key cannot be read".to_owned())?;
    let issuer = Issuer::from_ca_cert_pem(&authority.certificate_pem, key)
        .map_err(|_| "the cluster's CA certificate cannot be read".to_owned())?;
    Ok(csr
        .signed_by(&issuer)
        .map_err(|error| error.to_string())?
        .pem())
}

#[cfg(test)]
mod tests {
    use rcgen::{BasicConstraints, CertificateParams, DnType, SanType};

    use super::*;

    fn encoded(common_name: &str, organization: &str, names: &[SanType]) -> String {
        let mut params = CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params
            .distinguished_name
            .push(DnType::CommonName, common_name);
        params
            .distinguished_name
            .push(DnType::OrganizationName, organization);
        params.subject_alt_names = names.to_vec();
        let key = KeyPair::generate().expect("a key");
        params
            .serialize_request(&key)
            .and_then(|request| request.pem())
            .expect("a request")
    }

    fn request(
        signer: &str,
        user: &str,
        group: &str,
        usage: &str,
        pem: String,
    ) -> CertificateSigningRequest {
        serde_json::from_value(json!({
            "metadata": { "name": "csr", "creationTimestamp": "2026-01-01T00:00:00Z" },
            "spec": { "signerName": signer, "request": ByteString(pem.into_bytes()), "username": user, "groups": [group],
                "usages": ["digital signature", usage], "expirationSeconds": 3600 },
        }))
        .expect("a request")
    }

    fn node() -> Option<Arc<Node>> {
        let node = json!({ "metadata": { "name": "n1" }, "status": { "addresses": [
            { "type": "InternalIP", "address": "10.0.0.5" }, { "type": "Hostname", "address": "n1" } ] } });
        serde_json::from_value(node).ok().map(Arc::new)
    }

    #[test]
    fn who_is_approved() {
        let plain = || encoded("system:node:n1", NODES, &[]);
        let check = |request: CertificateSigningRequest, expected: bool| {
            assert_eq!(
                approval(&request, |_| node()).is_some(),
                expected,
                "{:?}",
                request.spec.username
            );
        };
        check(
            request(
                CLIENT_KUBELET,
                "system:bootstrap:abc",
                BOOTSTRAPPERS,
                "client auth",
                plain(),
            ),
            true,
        );
        check(
            request(
                CLIENT_KUBELET,
                "system:node:n1",
                NODES,
                "client auth",
                plain(),
            ),
            true,
        );
        check(
            request(
                CLIENT_KUBELET,
                "system:node:n2",
                NODES,
                "client auth",
                plain(),
            ),
            false,
        );
        check(
            request(
                CLIENT_KUBELET,
                "system:bootstrap:abc",
                BOOTSTRAPPERS,
                "server auth",
                plain(),
            ),
            false,
        );
        check(
            request(
                CLIENT,
                "system:bootstrap:abc",
                BOOTSTRAPPERS,
                "client auth",
                plain(),
            ),
            false,
        );
        let admin = encoded("admin", "system:masters", &[]);
        check(
            request(
                CLIENT_KUBELET,
                "system:bootstrap:abc",
                BOOTSTRAPPERS,
                "client auth",
                admin,
            ),
            false,
        );

        let ip = |text: &str| SanType::IpAddress(text.parse().expect("an address"));
        let serving = |names: &[SanType]| encoded("system:node:n1", NODES, names);
        check(
            request(
                SERVING,
                "system:node:n1",
                NODES,
                "server auth",
                serving(&[ip("10.0.0.5")]),
            ),
            true,
        );
        check(
            request(
                SERVING,
                "system:node:n1",
                NODES,
                "server auth",
                serving(&[ip("10.0.0.6")]),
            ),
            false,
        );
        check(
            request(
                SERVING,
                "system:node:n1",
                NODES,
                "server auth",
                serving(&[]),
            ),
            false,
        );
        check(
            request(
                SERVING,
                "system:node:n2",
                NODES,
                "server auth",
                serving(&[ip("10.0.0.5")]),
            ),
            false,
        );
        let unknown = request(
            SERVING,
            "system:node:n1",
            NODES,
            "server auth",
            serving(&[ip("10.0.0.5")]),
        );
        assert!(
            approval(&unknown, |_| None).is_none(),
            "waits for the node to register"
        );
    }

    #[test]
    fn signed_certificates_chain_to_the_ca_and_keep_the_subject() {
        let key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let ca = params.self_signed(&key).expect("a CA");
        let authority = Authority {
            certificate_pem: ca.pem(),
            key_pem: key.serialize_pem(),
        };
        let now: Timestamp = "2026-01-01T00:00:00Z".parse().expect("a time");
        let wish = encoded("system:node:n1", NODES, &[]);
        let pem = sign(
            &request(
                CLIENT_KUBELET,
                "x",
                BOOTSTRAPPERS,
                "client auth",
                wish.clone(),
            ),
            &authority,
            now,
        )
        .expect("signs");
        let (_, pem) = x509_parser::pem::parse_x509_pem(pem.as_bytes()).expect("PEM");
        let certificate = pem.parse_x509().expect("a certificate");
        let (_, ca) = x509_parser::parse_x509_certificate(ca.der()).expect("a certificate");
        assert!(certificate.verify_signature(Some(ca.public_key())).is_ok());
        assert_eq!(
            certificate
                .subject()
                .iter_common_name()
                .next()
                .and_then(|name| name.as_str().ok()),
            Some("system:node:n1")
        );
        assert!(!certificate.is_ca());
        assert_eq!(
            certificate.validity().not_after.timestamp(),
            now.as_second() + 3600
        );
        assert!(
            certificate
                .extended_key_usage()
                .ok()
                .flatten()
                .is_some_and(|usage| usage.value.client_auth && !usage.value.server_auth)
        );

        assert!(
            sign(
                &request(CLIENT_KUBELET, "x", BOOTSTRAPPERS, "server auth", wish),
                &authority,
                now
            )
            .is_err()
        );
        let masters = encoded("me", "system:masters", &[]);
        assert!(
            sign(
                &request(CLIENT, "x", "y", "client auth", masters),
                &authority,
                now
            )
            .is_err()
        );
    }

    #[test]
    fn requests_are_forgotten() {
        let mut request = request(CLIENT, "x", "y", "client auth", String::new());
        let at = |text: &str| text.parse::<Timestamp>().expect("a time");
        assert_eq!(
            time_left(&request, at("2026-01-02T00:00:00Z")),
            Some(Duration::ZERO)
        );
        assert_eq!(
            time_left(&request, at("2026-01-01T12:00:00Z")),
            Some(Duration::from_secs(12 * 3600))
        );
        let condition = new_condition("Approved", "r", "m", at("2026-01-01T00:00:00Z"));
        request.status.get_or_insert_default().conditions = Some(vec![condition]);
        assert_eq!(
            time_left(&request, at("2026-01-01T12:00:00Z")),
            Some(Duration::ZERO)
        );
    }
}
