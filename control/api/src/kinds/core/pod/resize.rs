//! Other resources for the containers of a pod that runs (KEP-1287).

use k8s_openapi::api::core::v1::{Container, Pod, ResourceRequirements};

use crate::field::{Errors, Path};
use crate::pod::{is_sidecar, qos_class};
use crate::quantity::{Amount, ResourceList};
use crate::zero::List;

use super::is_mirror;

/// Takes resources and resize policies over, container by container. Lists that do not match are taken as they are, for
/// validation to refuse.
pub(super) fn resize(containers: &mut Vec<Container>, asked: &[Container]) {
    let same = containers.len() == asked.len()
        && containers
            .iter()
            .zip(asked)
            .all(|(own, asked)| own.name == asked.name);
    if !same {
        *containers = asked.to_vec();
        return;
    }
    for (container, asked) in containers.iter_mut().zip(asked) {
        container.resources.clone_from(&asked.resources);
        container.resize_policy.clone_from(&asked.resize_policy);
    }
}

pub(super) fn validate_resize(new: &Pod, old: &Pod, errors: &mut Errors) {
    let mut only = |text: &str| {
        errors.0.clear();
        errors.forbidden(&Path::new(""), text);
    };
    let windows = |pod: &Pod| {
        let os = pod.spec.as_ref().and_then(|spec| spec.os.as_ref());
        os.is_some_and(|os| os.name == "windows")
    };
    if is_mirror(old) {
        only("static pods cannot be resized");
        return;
    }
    if windows(old) {
        only("windows pods cannot be resized");
        return;
    }
    let path = Path::new("spec");
    if qos_class(new) != qos_class(old) {
        let qos = new
            .status
            .as_ref()
            .and_then(|status| status.qos_class.clone());
        errors.invalid(
            &path,
            qos,
            "Pod QOS Class may not change as a result of resizing",
        );
    }
    if !runs_where_resizing_works(old) {
        errors.forbidden(&path, "Pod running on node without support for resize");
    }
    let (new, old) = (
        new.spec.clone().unwrap_or_default(),
        old.spec.clone().unwrap_or_default(),
    );
    let before = errors.len();
    for (field, new, old) in [
        ("containers", &new.containers[..], &old.containers[..]),
        (
            "initContainers",
            new.init_containers.items(),
            old.init_containers.items(),
        ),
    ] {
        validate_same_containers(field, new, old, &path.child(field), errors);
    }
    if errors.len() > before {
        return;
    }
    let both = |new: &[Container], old: &[Container]| -> Vec<(Container, Container)> {
        new.iter().cloned().zip(old.iter().cloned()).collect()
    };
    let init = both(new.init_containers.items(), old.init_containers.items());
    let containers = both(&new.containers, &old.containers);
    for (field, pairs) in [("initContainers", &init), ("containers", &containers)] {
        let path = path.child(field);
        for (i, (new, old)) in pairs.iter().enumerate() {
            if field == "containers" || is_sidecar(old) {
                validate_container_resize(new, old, &path.index(i).child("resources"), errors);
            }
        }
    }
    for (new, old) in &containers {
        if with_compute_of(new, old) != *old {
            errors.forbidden(&path, "only cpu and memory resources are mutable");
        }
    }
    for (new, old) in &init {
        let (allowed, detail) = if is_sidecar(new) {
            let detail = "only cpu and memory resources for sidecar containers are mutable";
            (with_compute_of(new, old) == *old, detail)
        } else {
            let detail = "resources for non-sidecar init containers are immutable";
            (new == old, detail)
        };
        if !allowed {
            errors.forbidden(&path, detail);
        }
    }
}

/// What follows compares them one by one.
fn validate_same_containers(
    field: &str,
    new: &[Container],
    old: &[Container],
    path: &Path<'_>,
    errors: &mut Errors,
) {
    if new.len() != old.len() {
        errors.forbidden(
            path,
            format!("{field} may not be added or removed on resize"),
        );
        return;
    }
    for (i, (new, old)) in new.iter().zip(old).enumerate() {
        if new.name != old.name {
            errors.forbidden(
                &path.index(i).child("name"),
                format!("{field} may not be renamed or reordered on resize"),
            );
        }
    }
}

/// An agent that can resize reports what containers run with. Before any runs, it is not known.
fn runs_where_resizing_works(pod: &Pod) -> bool {
    let status = pod.status.clone().unwrap_or_default();
    let mut statuses = status.container_statuses.items().iter();
    let running = statuses.find(|one| {
        one.state
            .as_ref()
            .is_some_and(|state| state.running.is_some())
    });
    running.is_none_or(|one| one.resources.is_some())
}

fn validate_container_resize(
    new: &Container,
    old: &Container,
    path: &Path<'_>,
    errors: &mut Errors,
) {
    let resources = |container: &Container| container.resources.clone().unwrap_or_default();
    let (new, old): (ResourceRequirements, ResourceRequirements) = (resources(new), resources(old));
    for (field, what, new, old) in [
        ("requests", "requests", &new.requests, &old.requests),
        ("limits", "limits", &new.limits, &old.limits),
    ] {
        let has = |name: &String| new.as_ref().is_some_and(|list| list.contains_key(name));
        if !old.iter().flatten().all(|(name, _)| has(name)) {
            errors.forbidden(
                &path.child(field),
                format!("resource {what} cannot be removed"),
            );
        }
    }
}

/// `new` with cpu and memory as `old` has them: what is left shows the other changes.
fn with_compute_of(new: &Container, old: &Container) -> Container {
    let mut container = new.clone();
    container.resize_policy.clone_from(&old.resize_policy);
    let old = old.resources.clone().unwrap_or_default();
    if let Some(resources) = &mut container.resources {
        for (list, old) in [
            (&mut resources.limits, &old.limits),
            (&mut resources.requests, &old.requests),
        ] {
            let mut kept: ResourceList = list.take().unwrap_or_default();
            for name in ["cpu", "memory"] {
                kept.remove(name);
                if let Some(quantity) = old.as_ref().and_then(|list| list.get(name)) {
                    kept.insert(name.to_owned(), Amount::of(quantity).to_wire());
                }
            }
            *list = Some(kept).filter(|list| !list.is_empty() || old.is_some());
        }
    }
    container
}
