//! `docs/spec-fields.md` is written from the tables: `UPDATE=1 cargo test -p cloister-spec` writes it anew.

use std::fmt::Write;

use crate::mount::{Attribute, FILE_SYSTEMS, MOUNT_OPTIONS, MountOption};
use crate::names::{
    APPARMOR_PROFILES, CAPABILITIES, DEVICE_RULE_TYPES, DEVICE_TYPES, IO_PRIORITY_CLASSES,
    MEMORY_POLICY_MODES, NAMESPACES, PERSONALITIES, PROPAGATIONS, RLIMITS, SCHEDULER_FLAGS,
    SCHEDULER_POLICIES, SECCOMP_ACTIONS, SECCOMP_ARCHS, SECCOMP_FLAGS, SECCOMP_OPERATORS,
};
use crate::shape::{Enforcer, Field, Names, Shape, Unknown, Verdict};
use crate::table;

const PAGE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/spec-fields.md");

const HEAD: &str = "\
# Fields of the OCI runtime specification

<!-- Written from the tables in agent/spec by its tests: UPDATE=1 cargo test -p cloister-spec -->

Every property of `config.json` that the runtime specification 1.0 to 1.3 knows is here with what becomes of it.
`cloister features` and the checks of `create` come from the same tables. None is passed over silently:

- **enforced**: every value that passes the checks takes effect, on the host, in the guest, or by a part of both;
- **accepted**: it asks for nothing that has to be done, for the reason given;
- **refused**: a value other than `null`, `false`, `0` or an empty one is an error that names the field and gives the reason.

A property that the specification does not know is dropped with a warning, as the specification demands.
[limits.md](limits.md) tells what stands behind the refusals.
";

fn page() -> String {
    let mut page = HEAD.to_owned();
    for (title, path, fields) in sections() {
        let _ = write!(
            page,
            "\n## {title}\n\n| Property | Type | |\n|---|---|---|\n"
        );
        rows(&mut page, fields, path, Enforcer::Both);
    }
    page.push_str("\n## Values\n\n| What | Accepted | Refused |\n|---|---|---|\n");
    for names in [
        &NAMESPACES,
        &CAPABILITIES,
        &RLIMITS,
        &SCHEDULER_POLICIES,
        &SCHEDULER_FLAGS,
        &IO_PRIORITY_CLASSES,
        &PERSONALITIES,
        &MEMORY_POLICY_MODES,
        &APPARMOR_PROFILES,
        &PROPAGATIONS,
        &DEVICE_TYPES,
        &DEVICE_RULE_TYPES,
        &SECCOMP_ACTIONS,
        &SECCOMP_OPERATORS,
        &SECCOMP_FLAGS,
        &SECCOMP_ARCHS,
    ] {
        values(&mut page, names);
    }
    mounts(&mut page);
    page
}

/// A page of one table would be hard to read.
fn sections() -> [(&'static str, &'static str, &'static [Field]); 5] {
    let below = |fields: &'static [Field], name: &str| {
        let field = fields.iter().find(|field| field.name == name).unwrap();
        match inner(&field.shape) {
            Shape::Object(fields) => *fields,
            _ => panic!("{name}"),
        }
    };
    let linux = below(table::ROOT, "linux");
    [
        ("The root object", "", table::ROOT),
        ("Process", "process", below(table::ROOT, "process")),
        ("Linux", "linux", linux),
        ("Resources", "linux.resources", below(linux, "resources")),
        ("Seccomp", "linux.seccomp", below(linux, "seccomp")),
    ]
}

const SECTIONS: [&str; 4] = ["process", "linux", "linux.resources", "linux.seccomp"];

fn inner(shape: &'static Shape) -> &'static Shape {
    match shape {
        Shape::List(item) | Shape::Map(item) => inner(item),
        shape => shape,
    }
}

/// `side` is who enforces the object that these are the properties of.
fn rows(page: &mut String, fields: &'static [Field], parent: &str, side: Enforcer) {
    for field in fields {
        let path = if parent.is_empty() {
            field.name.to_owned()
        } else {
            format!("{parent}.{}", field.name)
        };
        let mut kind = kind(&field.shape);
        if field.required {
            kind.push_str(", required");
        }
        let own = match (field.verdict, side) {
            (Verdict::Enforced(Enforcer::Both), side) => Verdict::Enforced(side),
            (verdict, _) => verdict,
        };
        let mut verdict = match own {
            Verdict::Enforced(Enforcer::Host) => "enforced on the host".to_owned(),
            Verdict::Enforced(Enforcer::Guest) => "enforced in the guest".to_owned(),
            Verdict::Enforced(Enforcer::Both) => "enforced on both sides".to_owned(),
            Verdict::NoEffect(reason) => format!("accepted: {reason}"),
            Verdict::Refused(reason) => format!("**refused**: {reason}"),
        };
        if !field.note.is_empty() {
            let _ = write!(verdict, " ({})", field.note);
        }
        let _ = writeln!(page, "| `{path}` | {kind} | {verdict} |");
        let goes_down =
            !matches!(field.verdict, Verdict::Refused(_)) && !SECTIONS.contains(&path.as_str());
        if let (true, Shape::Object(fields)) = (goes_down, inner(&field.shape)) {
            let side = match own {
                Verdict::Enforced(side) => side,
                _ => side,
            };
            rows(page, fields, &path, side);
        }
    }
}

fn kind(shape: &Shape) -> String {
    match shape {
        Shape::Bool => "boolean".into(),
        Shape::Str | Shape::Text(_) => "string".into(),
        Shape::Name(names) => names.what.into(),
        Shape::Int(min, max) => match i64::try_from(*max) {
            Ok(max) if max < i64::from(u32::MAX) - 1 && *min > i128::from(i32::MIN) => {
                format!("{min} to {max}")
            }
            _ => "integer".into(),
        },
        Shape::List(item) => format!("list: {}", kind(item)),
        Shape::Map(item) => format!("map: {}", kind(item)),
        Shape::Object(_) => "object".into(),
    }
}

fn values(page: &mut String, names: &Names) {
    let mut sorted = names.supported.to_vec();
    sorted.sort_unstable();
    let supported: Vec<String> = sorted.iter().map(|name| format!("`{name}`")).collect();
    let mut supported = supported.join(" ");
    if let Unknown::RefusedUnlessDefault { defaults, .. } = names.unknown {
        let defaults: Vec<String> = defaults.iter().map(|name| format!("`{name}`")).collect();
        let _ = write!(
            supported,
            ", and with a warning what callers choose by themselves: {}",
            defaults.join(" ")
        );
    }
    let mut refused: Vec<String> = names
        .refused
        .iter()
        .map(|(name, reason)| format!("`{name}`: {reason}"))
        .collect();
    match names.unknown {
        Unknown::Invalid => {}
        Unknown::Warning => refused.push("any other is dropped with a warning".into()),
        Unknown::Refused(reason) | Unknown::RefusedUnlessDefault { reason, .. } => {
            refused.push(format!("any other: {reason}"));
        }
    }
    let _ = writeln!(
        page,
        "| {} | {} | {} |",
        names.what,
        supported,
        refused.join("; ")
    );
}

/// The kernel's name.
fn attribute_name(attribute: Attribute) -> &'static str {
    match attribute {
        Attribute::ReadOnly => "MOUNT_ATTR_RDONLY",
        Attribute::NoSuid => "MOUNT_ATTR_NOSUID",
        Attribute::NoDev => "MOUNT_ATTR_NODEV",
        Attribute::NoExec => "MOUNT_ATTR_NOEXEC",
        Attribute::NoDirAtime => "MOUNT_ATTR_NODIRATIME",
        Attribute::NoSymFollow => "MOUNT_ATTR_NOSYMFOLLOW",
    }
}

/// In small letters.
fn word(variant: &impl std::fmt::Debug) -> String {
    format!("{variant:?}").to_lowercase()
}

fn mounts(page: &mut String) {
    let systems: Vec<String> = FILE_SYSTEMS
        .iter()
        .map(|fs| format!("`{}`", fs.name))
        .collect();
    let _ = write!(
        page,
        "\n## Mounts\n\nA bind mount (`type: bind`, or `bind` or `rbind` among the options), a `remount`, or a new file \
         system:\n{}. `cgroup` is a cgroup v2 mount.\n\nAn option that is not below belongs to the file system and is \
         passed to it; the kernel's refusal is an error with the\noption's name. Bind mounts and remounts have no such \
         options: there it is refused.\n\n| Option | |\n|---|---|\n",
        systems.join(", ")
    );
    for (name, option) in MOUNT_OPTIONS {
        let reach = |recursive: &bool| if *recursive { ", also below" } else { "" };
        let effect = match option {
            MountOption::Attribute {
                attribute,
                set,
                recursive,
            } => {
                let verb = if *set { "sets" } else { "clears" };
                format!(
                    "{verb} `{}`{}",
                    attribute_name(*attribute),
                    reach(recursive)
                )
            }
            MountOption::AccessTime { mode, recursive } => {
                format!("access times: {}{}", word(mode), reach(recursive))
            }
            MountOption::Propagation {
                propagation,
                recursive,
            } => format!("propagation: {}{}", word(propagation), reach(recursive)),
            MountOption::Bind { recursive } => format!("bind mount{}", reach(recursive)),
            MountOption::Remount => "other attributes for an existing mount".into(),
            MountOption::Superblock(flag) => {
                format!(
                    "the file system's `{flag}`; refused for bind mounts unless it is how it is"
                )
            }
            MountOption::CopyUp => "copies what is covered into a new tmpfs".into(),
            MountOption::IdMap { recursive } => format!(
                "maps ids by `uidMappings` and `gidMappings`, of the mount or of the container{}",
                reach(recursive)
            ),
            MountOption::NoFollow => "mounts over a link at the destination".into(),
            MountOption::Nothing => "accepted: how it is anyway".into(),
            MountOption::Refused(reason) => format!("**refused**: {reason}"),
        };
        let _ = writeln!(page, "| `{name}` | {effect} |");
    }
}

#[test]
fn the_page_of_fields_is_what_the_tables_say() {
    let expected = page();
    if std::env::var_os("UPDATE").is_some() {
        std::fs::write(PAGE, &expected).unwrap();
    }
    let committed = std::fs::read_to_string(PAGE).unwrap_or_default();
    let differs = expected
        .lines()
        .zip(committed.lines())
        .find(|(expected, committed)| expected != committed);
    assert_eq!(differs, None, "run: UPDATE=1 cargo test -p cloister-spec");
    assert_eq!(expected.lines().count(), committed.lines().count());
}
