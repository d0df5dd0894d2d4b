use super::*;

#[test]
fn nothing_means_the_defaults() {
    for text in [
        "",
        ",",
        "defaults",
        "rw,async,nosuid,nodev,exec,atime,nolate_close",
    ] {
        assert_eq!(
            MountOptions::parse(text).unwrap(),
            MountOptions::default(),
            "{text}"
        );
    }
}

#[test]
fn every_value_reaches_its_field() {
    let text = "ro,allow_other,auto_unmount,fsname=ember:7400,subtype=ember,direct_io,subdir=/a/b/,\
                threads=9,max_background=77,read_ahead_kb=128,attr_timeout=0.25,entry_timeout=3,\
                transport=classic,verify=transfer,suid,dev,noexec,noatime,sync,dirsync,late_close";
    let expected = MountOptions {
        keeper: true,
        read_only: true,
        allow_other: true,
        auto_unmount: true,
        fsname: "ember:7400".to_owned(),
        subtype: "ember".to_owned(),
        direct_io: true,
        subdir: Some("a/b".to_owned()),
        threads: 9,
        max_background: 77,
        read_ahead_kb: 128,
        attr_timeout: Duration::from_millis(250),
        entry_timeout: Duration::from_secs(3),
        timeouts_chosen: true,
        transport: Transport::Classic,
        verify: Verify::Transfer,
        suid: true,
        dev: true,
        exec: false,
        noatime: true,
        sync: true,
        dirsync: true,
        late_close: true,
    };
    assert_eq!(MountOptions::parse(text).unwrap(), expected);
}

#[test]
fn a_late_close_needs_a_keeper() {
    MountOptions::default().check().unwrap();
    for text in ["nokeeper", "auto_unmount", "transport=ring"] {
        let options = MountOptions::parse(&format!("late_close,{text}")).unwrap();
        let refused = options.check().unwrap_err().to_string();
        assert!(refused.contains("needs a keeper"), "{refused}");
    }
}

#[test]
fn later_options_win() {
    let options = MountOptions::parse("ro,rw,allow_other,noallow_other,subdir=x,subdir=/").unwrap();
    assert!(!options.read_only);
    assert!(!options.allow_other);
    assert_eq!(options.subdir, None);
}

#[test]
fn what_fstab_adds_is_accepted() {
    let text = "noauto,_netdev,nofail,user,x-systemd.automount,x-gvfs-hide,comment=mine,relatime";
    assert_eq!(MountOptions::parse(text).unwrap(), MountOptions::default());
}

#[test]
fn a_slip_is_refused_and_the_nearest_option_named() {
    for (typed, meant) in [
        ("atr_timeout=1", "attr_timeout"),
        ("direct-io", "direct_io"),
        ("allowother", "allow_other"),
        ("thread=2", "threads"),
        ("noexecc", "noexec"),
    ] {
        let error = MountOptions::parse(typed).unwrap_err();
        assert_eq!(error.code, ErrorCode::InvalidArgument);
        assert!(
            error.message.contains(&format!("did you mean {meant}?")),
            "{}",
            error.message
        );
    }
}

#[test]
fn every_known_name_is_understood() {
    for flag in FLAGS {
        let mut seen = MountOptions::default();
        seen.apply(flag).unwrap();
        assert!(
            MountOptions::parse(&format!("{flag}=1")).is_err(),
            "{flag} takes no value"
        );
    }
    for key in KEYS {
        let error = MountOptions::parse(key).unwrap_err();
        assert!(error.message.contains("needs a value"), "{}", error.message);
    }
}

#[test]
fn values_out_of_range_are_refused() {
    for text in [
        "threads=0",
        "threads=65",
        "threads=many",
        "max_background=0",
        "max_background=65536",
        "read_ahead_kb=-1",
        "attr_timeout=-1",
        "attr_timeout=NaN",
        "entry_timeout=3601",
        "transport=rings",
        "verify=none",
        "fsname=",
        "fsname=a b",
        "subtype=a\\b",
    ] {
        let error = MountOptions::parse(text).unwrap_err();
        assert_eq!(error.code, ErrorCode::InvalidArgument, "{text}");
    }
}
