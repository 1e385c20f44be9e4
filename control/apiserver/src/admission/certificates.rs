//! CertificateApproval, CertificateSigning, CertificateSubjectRestriction.

use async_trait::async_trait;
use base64::{Engine, engine::general_purpose::STANDARD};
use serde_json::Value;
use x509_parser::{certification_request::X509CertificationRequest, pem::Pem, prelude::FromDer};

use super::{Attributes, Operation, Plugin, forbidden};
use crate::{authz, context::Api, identity::MASTERS, status::Result};

const GROUP: &str = "certificates.k8s.io";
const PLURAL: &str = "certificatesigningrequests";

/// May the user do this for the signer? `domain/*` stands for all signers of a domain.
fn permitted(api: &Api, attributes: &Attributes<'_>, verb: &str, signer: &str) -> bool {
    let domain = signer.split('/').next().unwrap_or_default();
    let wildcard = format!("{domain}/*");
    [signer, wildcard.as_str()].iter().any(|name| {
        let question = authz::Attributes::Resource {
            user: attributes.user,
            verb,
            group: GROUP,
            version: "*",
            resource: "signers",
            subresource: "",
            namespace: "",
            name,
        };
        api.authorizer.authorize(&question).allowed()
    })
}

fn signer(request: &Value) -> &str {
    request["spec"]["signerName"].as_str().unwrap_or_default()
}

pub struct CertificateApproval;

#[async_trait]
impl Plugin for CertificateApproval {
    fn name(&self) -> &'static str {
        "CertificateApproval"
    }

    async fn validate(&self, api: &Api, attributes: &mut Attributes<'_>) -> Result<()> {
        if !attributes.resource.is(GROUP, PLURAL)
            || attributes.subresource != "approval"
            || attributes.operation != Operation::Update
        {
            return Ok(());
        }
        let signer = signer(attributes.old);
        if permitted(api, attributes, "approve", signer) {
            return Ok(());
        }
        let why = format!("user not permitted to approve requests with signerName {signer:?}");
        Err(forbidden(attributes, &why))
    }
}

pub struct CertificateSigning;

#[async_trait]
impl Plugin for CertificateSigning {
    fn name(&self) -> &'static str {
        "CertificateSigning"
    }

    async fn validate(&self, api: &Api, attributes: &mut Attributes<'_>) -> Result<()> {
        if !attributes.resource.is(GROUP, PLURAL)
            || attributes.subresource != "status"
            || attributes.operation != Operation::Update
            || ["certificate", "conditions"].iter().all(|field| {
                attributes.object["status"][*field] == attributes.old["status"][*field]
            })
        {
            return Ok(());
        }
        let signer = signer(attributes.old);
        if permitted(api, attributes, "sign", signer) {
            return Ok(());
        }
        let why = format!("user not permitted to sign requests with signerName {signer:?}");
        Err(forbidden(attributes, &why))
    }
}

/// Nobody gets a certificate of the group that may do everything.
pub struct CertificateSubjectRestriction;

#[async_trait]
impl Plugin for CertificateSubjectRestriction {
    fn name(&self) -> &'static str {
        "CertificateSubjectRestriction"
    }

    async fn validate(&self, _: &Api, attributes: &mut Attributes<'_>) -> Result<()> {
        const SIGNER: &str = "kubernetes.io/kube-apiserver-client";
        if !attributes.is(GROUP, PLURAL)
            || attributes.operation != Operation::Create
            || signer(&attributes.object) != SIGNER
        {
            return Ok(());
        }
        let request = attributes.object["spec"]["request"]
            .as_str()
            .unwrap_or_default();
        if organizations(request).iter().any(|o| o == MASTERS) {
            let why = format!("use of {SIGNER} signer with {MASTERS} group is not allowed");
            return Err(forbidden(attributes, &why));
        }
        Ok(())
    }
}

/// The organizations (groups) in the subject of a base64 PEM request; what cannot be read has none.
fn organizations(request: &str) -> Vec<String> {
    let Ok(pem) = STANDARD.decode(request) else {
        return Vec::new();
    };
    let Some(Ok(pem)) = Pem::iter_from_buffer(&pem).next() else {
        return Vec::new();
    };
    let Ok((_, csr)) = X509CertificationRequest::from_der(&pem.contents) else {
        return Vec::new();
    };
    let subject = &csr.certification_request_info.subject;
    let values = subject.iter_organization().filter_map(|o| o.as_str().ok());
    values.map(str::to_owned).collect()
}
