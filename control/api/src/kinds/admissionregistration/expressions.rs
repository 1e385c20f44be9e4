//! The expressions of policies and match conditions: whether they compile, refer to what is there, and give what is
//! asked of them.

use std::{collections::BTreeMap, sync::Arc};

use k8s_openapi::api::admissionregistration::v1::{MatchCondition, Mutation, Validation, Variable};
use skep_cel::{
    Program,
    check::{Declarations, Type, check, is_plain_selection},
};

use crate::{
    field::{Errors, Path},
    zero::Text,
};

/// What the expressions of one policy see.
pub(super) struct Scope {
    declarations: Declarations,
}

fn fields<const N: usize>(fields: [(&str, Type); N]) -> Type {
    let fields = fields.into_iter();
    let fields = fields.map(|(name, ty)| (name.to_owned(), ty)).collect();
    Type::Object(Arc::new(fields))
}

fn request() -> Type {
    let named = |last: &'static str| {
        fields([
            ("group", Type::TEXT),
            ("version", Type::TEXT),
            (last, Type::TEXT),
        ])
    };
    let user = fields([
        ("username", Type::TEXT),
        ("uid", Type::TEXT),
        ("groups", Type::list(Type::TEXT)),
        ("extra", Type::map(Type::list(Type::TEXT))),
    ]);
    fields([
        ("kind", named("kind")),
        ("resource", named("resource")),
        ("subResource", Type::TEXT),
        ("requestKind", named("kind")),
        ("requestResource", named("resource")),
        ("requestSubResource", Type::TEXT),
        ("name", Type::TEXT),
        ("namespace", Type::TEXT),
        ("operation", Type::TEXT),
        ("userInfo", user),
        ("dryRun", Type::Bool),
        ("options", Type::Dyn),
    ])
}

impl Scope {
    /// `params`: the policy has a `paramKind`.
    pub fn new(params: bool) -> Self {
        let authorizer = "kubernetes.authorization.Authorizer".to_owned();
        let mut declarations: Declarations = BTreeMap::from([
            ("object".to_owned(), Type::Dyn),
            ("oldObject".to_owned(), Type::Dyn),
            ("namespaceObject".to_owned(), Type::Dyn),
            ("request".to_owned(), request()),
            ("authorizer".to_owned(), Type::Named(authorizer)),
        ]);
        if params {
            declarations.insert("params".to_owned(), Type::Dyn);
        }
        Self { declarations }
    }

    pub fn declarations(&self) -> &Declarations {
        &self.declarations
    }

    pub fn declare(&mut self, name: &str, ty: Type) {
        self.declarations.insert(name.to_owned(), ty);
    }

    /// Those of the policy's variables whose types are known.
    pub fn declare_variables(&mut self, known: &BTreeMap<String, Type>) {
        self.declare("variables", Type::Object(Arc::new(known.clone())));
    }

    /// Checks `variables`, each seeing those before it, and declares them.
    pub fn variables(&mut self, variables: &[Variable], path: &Path<'_>, errors: &mut Errors) {
        let mut known = BTreeMap::new();
        for (i, variable) in variables.iter().enumerate() {
            self.declare_variables(&known);
            let at = path.index(i);
            let ty = self.check(&variable.expression, &[], &at.child("expression"), errors);
            known.insert(variable.name.clone(), ty);
        }
        self.declare_variables(&known);
    }

    pub fn conditions(&self, conditions: &[MatchCondition], path: &Path<'_>, errors: &mut Errors) {
        for (i, condition) in conditions.iter().enumerate() {
            let at = path.index(i);
            self.check(
                &condition.expression,
                &[Type::Bool],
                &at.child("expression"),
                errors,
            );
        }
    }

    pub fn validation(&self, validation: &Validation, path: &Path<'_>, errors: &mut Errors) {
        let at = path.child("expression");
        self.check(&validation.expression, &[Type::Bool], &at, errors);
        let message = validation.message_expression.text();
        let mut without_authorizer = Self {
            declarations: self.declarations.clone(),
        };
        without_authorizer.declarations.remove("authorizer");
        let at = path.child("messageExpression");
        without_authorizer.check(message, &[Type::TEXT], &at, errors);
    }

    pub fn annotation(&self, expression: &str, path: &Path<'_>, errors: &mut Errors) {
        self.check(expression, &[Type::TEXT, Type::Null], path, errors);
    }

    pub fn mutation(&self, mutation: &Mutation, path: &Path<'_>, errors: &mut Errors) {
        match mutation.patch_type.as_str() {
            "ApplyConfiguration" => {
                if let Some(apply) = &mutation.apply_configuration {
                    let at = path.child("applyConfiguration");
                    let wanted = [Type::Named("Object".to_owned())];
                    self.check(
                        apply.expression.text(),
                        &wanted,
                        &at.child("expression"),
                        errors,
                    );
                }
            }
            "JSONPatch" => {
                if let Some(patch) = &mutation.json_patch {
                    let at = path.child("jsonPatch");
                    let patch_type = Type::Named("JSONPatch".to_owned());
                    let wanted = [Type::list(patch_type)];
                    self.check(
                        patch.expression.text(),
                        &wanted,
                        &at.child("expression"),
                        errors,
                    );
                }
            }
            _ => {}
        }
    }

    /// The type of an expression. `wanted`: what it may be; empty for anything. An empty expression is refused
    /// elsewhere.
    fn check(&self, source: &str, wanted: &[Type], path: &Path<'_>, errors: &mut Errors) -> Type {
        let expression = source.trim();
        if expression.is_empty() {
            return Type::Dyn;
        }
        let mut refuse = |why: String| {
            errors.invalid(path, source, why);
            Type::Dyn
        };
        let program = match Program::compile(expression) {
            Ok(program) => program,
            Err(error) => return refuse(format!("compilation failed: {error}")),
        };
        let ty = match check(&program, &self.declarations) {
            Ok(checked) => checked.ty,
            Err(problems) => return refuse(format!("compilation failed: {problems}")),
        };
        let unknown = match &ty {
            // What the checker does not know may be right; a part of an object is never known to be.
            Type::Dyn => !is_plain_selection(&program),
            Type::List(items, _) => **items == Type::Dyn,
            Type::Named(name) => name != "Object" && !name.starts_with("Object."),
            _ => false,
        };
        if wanted.is_empty() || wanted.contains(&ty) || unknown {
            return ty;
        }
        match wanted {
            [one] => refuse(format!(
                "must evaluate to {} but got {}",
                one.runtime_name(),
                ty.runtime_name()
            )),
            several => {
                let several: Vec<String> = several.iter().map(Type::runtime_name).collect();
                refuse(format!("must evaluate to one of [{}]", several.join(" ")))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn errors_of(source: &str, wanted: &[Type]) -> Vec<String> {
        let mut scope = Scope::new(false);
        let variables = [Variable {
            name: "n".to_owned(),
            expression: "size(object.data)".to_owned(),
        }];
        let mut errors = Errors::default();
        let path = Path::new("x");
        scope.variables(&variables, &path, &mut errors);
        scope.check(source, wanted, &path, &mut errors);
        errors.0.iter().map(|error| error.body()).collect()
    }

    #[test]
    fn what_policies_may_say() {
        for source in [
            "object.spec.replicas <= 5",
            "variables.n > 3 && request.userInfo.groups.exists(g, g == 'x')",
            "authorizer.group('').resource('pods').check('get').allowed()",
            "namespaceObject == null || namespaceObject.metadata.labels.env == 'x'",
            "object.metadata.?labels[?'a'].orValue('') == 'b'",
            "!(request.operation in ['CREATE', 'UPDATE'])",
            "object.spec.containers.all(c, quantity(c.resources.limits['memory']).isLessThan(quantity('1Gi')))",
        ] {
            assert_eq!(
                errors_of(source, &[Type::Bool]),
                Vec::<String>::new(),
                "{source}"
            );
        }
    }

    #[test]
    fn what_they_may_not() {
        let check = |source: &str, wanted: Type, why: &str| {
            let errors = errors_of(source, &[wanted]);
            assert!(errors.len() == 1 && errors[0].contains(why), "{errors:?}");
        };
        check(
            "'x'",
            Type::Named("Object".into()),
            "must evaluate to Object but got string",
        );
        check(
            "object.spec.paused",
            Type::Bool,
            "must evaluate to bool but got dyn",
        );
        check(
            "duration('1s')",
            Type::Bool,
            "must evaluate to bool but got google.protobuf.Duration",
        );
        check(
            "null",
            Type::Bool,
            "must evaluate to bool but got null_type",
        );
        check(
            "params.x == 1",
            Type::Bool,
            "undeclared reference to 'params' (in container '')",
        );
        check("variables.m == 1", Type::Bool, "undefined field 'm'");
        check("request.user == ''", Type::Bool, "undefined field 'user'");
        check(
            "object.x ==",
            Type::Bool,
            "compilation failed: ERROR: <input>:1:",
        );
    }
}
