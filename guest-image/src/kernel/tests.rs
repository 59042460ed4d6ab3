use super::*;

fn inputs() -> Inputs {
    Inputs {
        recipe: 1,
        source_sha256: "s".into(),
        fragment_sha256: "f".into(),
        compiler: "gcc 12".into(),
        linker: "ld 2.40".into(),
    }
}

fn info(vmlinux: &[u8]) -> Info {
    Info {
        release: "6.12.0-cloister".into(),
        size: vmlinux.len() as u64,
        sha256: digest::of_bytes(vmlinux),
        pvh_entry: 0x100_0000,
        config_sha256: "c".into(),
        source_version: None,
        inputs: inputs(),
    }
}

#[test]
fn each_input_changes_the_key() {
    let base = inputs();
    let variants = [
        Inputs {
            recipe: 2,
            ..inputs()
        },
        Inputs {
            source_sha256: "t".into(),
            ..inputs()
        },
        Inputs {
            fragment_sha256: "g".into(),
            ..inputs()
        },
        Inputs {
            compiler: "gcc 13".into(),
            ..inputs()
        },
        Inputs {
            linker: "ld 2.41".into(),
            ..inputs()
        },
    ];
    let mut keys: Vec<_> = variants.iter().chain([&base]).map(Inputs::key).collect();
    assert_eq!(base.key(), inputs().key());
    keys.sort();
    keys.dedup();
    assert_eq!(keys.len(), variants.len() + 1);
}

#[test]
fn an_entry_is_believed_only_whole() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    assert!(find(dir.path(), &inputs()).is_none());

    let info = info(b"kernel");
    fs::write(at(VMLINUX), "kernel").unwrap();
    fs::write(at(INFO), serde_json::to_vec(&info).unwrap()).unwrap();
    let found = find(dir.path(), &inputs()).unwrap();
    assert_eq!((found.vmlinux, found.info), (at(VMLINUX), info));

    assert!(
        find(
            dir.path(),
            &Inputs {
                recipe: 9,
                ..inputs()
            }
        )
        .is_none()
    );
    fs::write(at(VMLINUX), "kermit").unwrap();
    assert!(find(dir.path(), &inputs()).is_none());
    fs::write(at(VMLINUX), "kernel").unwrap();
    fs::write(at(INFO), "{}").unwrap();
    assert!(find(dir.path(), &inputs()).is_none());
}

#[test]
fn a_reworded_comment_is_the_same_fragment_and_a_variant_is_another() {
    let dir = tempfile::tempdir().unwrap();
    let variant = |text: &str| {
        let path = dir.path().join("variant");
        fs::write(&path, text).unwrap();
        fragment(&[path]).unwrap().to_string()
    };
    let base = fragment(&[]).unwrap().to_string();
    assert_eq!(variant("# nothing but words\n"), base);
    assert_ne!(variant("CONFIG_HZ_1000=y\n"), base);
    assert_eq!(
        variant("CONFIG_NR_CPUS=8\n"),
        base.replace("CONFIG_NR_CPUS=64\n", "CONFIG_NR_CPUS=8\n")
    );
}

#[test]
fn a_wrong_variant_is_named() {
    let error = fragment(&["/nonexistent/variant".into()]).unwrap_err();
    assert_eq!(
        error.to_string(),
        "kernel configuration /nonexistent/variant"
    );
}

#[test]
fn a_missing_source_names_the_package() {
    let dir = tempfile::tempdir().unwrap();
    let recipe = Recipe {
        source: "/nonexistent/linux.tar.xz".into(),
        variants: Vec::new(),
        jobs: 1,
    };
    let error = obtain(&recipe, &Cache::at(dir.path()), &mut |_| {}).unwrap_err();
    assert_eq!(
        error.to_string(),
        "kernel source /nonexistent/linux.tar.xz not found: it is in Debian's package \
         linux-source-6.12 (apt-get install linux-source-6.12)"
    );
}

/// A source tree that is none shows that a failed build leaves its log and no entry.
#[test]
fn a_failed_build_keeps_its_log() {
    if tools::check().is_err() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let source = dir.path().join("linux.tar.xz");
    fs::write(&source, "no tarball").unwrap();
    let cache_dir = dir.path().join("cache");
    let recipe = Recipe {
        source,
        variants: Vec::new(),
        jobs: 1,
    };
    let mut lines = Vec::new();
    let error = obtain(&recipe, &Cache::at(&cache_dir), &mut |line| {
        lines.push(line.to_owned())
    })
    .unwrap_err();
    let KernelError::Compile(CompileError::Failed { step, log, .. }) = &error else {
        panic!("{error:?}");
    };
    assert_eq!(*step, "unpacking the kernel source");
    assert!(fs::read_to_string(log).unwrap().contains("tar: "));
    assert!(lines[0].starts_with("kernel: unpacking "), "{lines:?}");
    assert_eq!(fs::read_dir(cache_dir.join("kernel")).unwrap().count(), 0);
}
