//! The host side of devices and launches, against the mock driver of tests/mock.

use std::ffi::c_void;
use std::ptr::null_mut;

use super::device::Device;
use super::driver::driver;
use super::fatbins::{Aligned, Fatbin};
use super::launch::{Launch, Launcher};
use super::pointers;
use crate::abi::types::*;
use crate::error::{Error, Result};

#[path = "../../tests/support/mock.rs"]
mod mock;

use mock::{Driver, calls, field, with_driver, with_mock};

const IMAGES: &[Fatbin] = &[("first", &Aligned([0u8; 64])), ("second", &Aligned([0u8; 64]))];
const KERNELS: (&str, &str) = ("MOCK_KERNELS", "scale:24,other:8");

#[derive(Clone, Copy)]
#[repr(C)]
struct Params {
    x: u64,
    rows: i64,
    report: *mut moe_device_report_t,
}

fn params(launcher: &Launcher) -> Params {
    Params { x: 0x0123456789abcdef, rows: -2, report: launcher.report }
}

fn scale() -> Launch {
    Launch { kernel: "scale", grid: [3, 2, 1], block: 64, ..Default::default() }
}

fn open() -> Device {
    let device = Device::open_with(0, IMAGES).unwrap();
    calls();
    device
}

fn launches(calls: &[String]) -> Vec<&String> {
    calls.iter().filter(|call| call.starts_with("cuLaunchKernelEx")).collect()
}

fn refusal(result: Result<Device>) -> Error {
    result.err().expect("the device does not open")
}

#[test]
fn opens_prepares_every_kernel_and_closes() {
    with_mock(&[KERNELS], || {
        let device = Device::open_with(0, IMAGES).unwrap();
        assert_eq!((device.capability, device.multiprocessors, device.info().driver_version), (90, 132, 13000));
        let opened = calls();
        assert_eq!(opened.iter().filter(|c| *c == "cuLibraryLoadData").count(), 2);
        for kernel in ["scale", "other"] {
            // Attribute 8: dynamic shared memory; the mock's kernels have 1024 static bytes.
            assert!(
                opened.contains(&format!("cuFuncSetAttribute kernel={kernel} attribute=8 value=231424")),
                "{opened:?}"
            );
        }
        assert!(!opened.iter().any(|call| call.starts_with("cuMem")), "{opened:?}");
        drop(device);
        let closed = calls();
        assert_eq!(closed.iter().filter(|c| *c == "cuLibraryUnload").count(), 2);
        assert_eq!(closed.last().unwrap(), "cuDevicePrimaryCtxRelease_v2");
    });
}

#[test]
fn launches_on_the_callers_stream_in_the_primary_context() {
    with_mock(&[KERNELS], || {
        let device = open();
        for stream in [0usize, 1, 2, 0xdeadbeef] {
            device
                .run(null_mut(), stream as *mut c_void, |launcher| launcher.launch(&scale(), &params(launcher)))
                .unwrap();
            let calls = calls();
            let [launch] = launches(&calls)[..] else { panic!("{calls:?}") };
            let stream = if stream == 0 { "(nil)".into() } else { format!("{stream:#x}") };
            assert_eq!(field(launch, "stream"), stream);
            assert_eq!(field(launch, "grid"), "3,2,1");
            assert_eq!(field(launch, "block"), "64,1,1");
            assert_eq!(field(launch, "shared"), "0");
            assert_eq!(field(launch, "context"), "primary");
            assert_eq!(field(launch, "attributes"), "");
            assert_eq!(field(launch, "params"), "efcdab8967452301feffffffffffffff0000000000000000");
            // Nothing else happens than the context's coming and going.
            let names: Vec<_> = calls.iter().map(|call| call.split(' ').next().unwrap()).collect();
            let expected = ["cuCtxGetCurrent", "cuCtxPushCurrent_v2", "cuLaunchKernelEx", "cuCtxPopCurrent_v2"];
            assert_eq!(names, expected);
        }
    });
}

#[test]
fn leaves_the_callers_context_current() {
    with_mock(&[KERNELS], || {
        let device = open();
        let current = || {
            let mut context = null_mut();
            unsafe { driver().unwrap().current_context(&mut context).unwrap() };
            context
        };
        assert!(current().is_null());
        device.run(null_mut(), null_mut(), |launcher| launcher.launch(&scale(), &params(launcher))).unwrap();
        assert!(current().is_null());
        let mine = 0x1000 as *mut _;
        unsafe { driver().unwrap().push_context(mine).unwrap() };
        let failed = device.run(null_mut(), null_mut(), |_| Err(Error::unsupported("stop")));
        assert!(matches!(failed, Err(Error::Unsupported(_))));
        assert_eq!(current(), mine);
        // Where the primary context is current already, it is neither pushed nor popped.
        let _scope = device.enter().unwrap();
        calls();
        device.run(null_mut(), null_mut(), |launcher| launcher.launch(&scale(), &params(launcher))).unwrap();
        assert!(!calls().iter().any(|call| call.contains("Push") || call.contains("Pop")));
    });
}

#[test]
fn orders_streams_by_the_callers_event() {
    with_mock(&[KERNELS], || {
        let device = open();
        let at = |address: usize| address as *mut c_void;
        device.stream_wait(at(0x10), null_mut(), at(0xe0)).unwrap();
        let calls = calls();
        let made: Vec<&String> = calls.iter().filter(|call| !call.starts_with("cuCtx")).collect();
        assert_eq!(made, ["cuEventRecord event=0xe0 stream=(nil)", "cuStreamWaitEvent stream=0x10 event=0xe0 flags=0"]);
        assert_eq!(calls.last().unwrap(), "cuCtxPopCurrent_v2");
    });
}

#[test]
fn waits_for_no_event_that_was_not_recorded() {
    with_mock(&[KERNELS, ("MOCK_FAIL", "cuEventRecord:400")], || {
        let device = open();
        let error = device.stream_wait(null_mut(), null_mut(), 0xe0 as *mut c_void).unwrap_err();
        assert!(matches!(error, Error::Driver { call: "cuEventRecord", .. }));
        assert!(!calls().iter().any(|call| call.starts_with("cuStreamWaitEvent")));
    });
}

#[test]
fn passes_launch_attributes() {
    with_mock(&[KERNELS], || {
        let device = open();
        let launch = Launch { shared: 200_000, cooperative: true, cluster: 2, overlap: true, ..scale() };
        device.run(null_mut(), null_mut(), |launcher| launcher.launch(&launch, &params(launcher))).unwrap();
        let calls = calls();
        let launch = launches(&calls)[0];
        assert_eq!(field(launch, "attributes"), "2:1,4:2,6:1,");
        assert_eq!(field(launch, "shared"), "200000");
    });
}

#[test]
fn overlaps_no_launches_before_hopper() {
    with_mock(&[KERNELS, ("MOCK_CAPABILITY", "89")], || {
        let device = open();
        let launch = Launch { overlap: true, ..scale() };
        device.run(null_mut(), null_mut(), |launcher| launcher.launch(&launch, &params(launcher))).unwrap();
        assert_eq!(field(launches(&calls())[0], "attributes"), "");
    });
}

#[test]
fn launches_nothing_for_an_empty_grid() {
    with_mock(&[KERNELS], || {
        let device = open();
        for dimension in 0..3 {
            let mut launch = scale();
            launch.grid[dimension] = 0;
            device.run(null_mut(), null_mut(), |launcher| launcher.launch(&launch, &params(launcher))).unwrap();
        }
        device.run(null_mut(), null_mut(), |launcher| launcher.clear(null_mut::<u8>(), 0)).unwrap();
        assert!(!calls().iter().any(|call| call.starts_with("cuLaunch") || call.starts_with("cuMem")));
    });
}

#[test]
fn refuses_unknown_kernels_and_other_parameters() {
    with_mock(&[KERNELS], || {
        let device = open();
        let launch =
            |launch: Launch| device.run(null_mut(), null_mut(), |l| l.launch(&launch, &params(l))).unwrap_err();
        let error = launch(Launch { kernel: "none", ..scale() });
        assert_eq!(error.to_string(), "libmoe failed internally: there is no kernel none");
        let error = launch(Launch { kernel: "other", ..scale() });
        assert_eq!(error.to_string(), "libmoe failed internally: kernel other takes 8 bytes, 24 were given");
        assert!(launches(&calls()).is_empty());
    });
}

fn fails_to_launch(text: &str) {
    let device = open();
    let error = device.run(null_mut(), null_mut(), |l| l.launch(&scale(), &params(l))).unwrap_err();
    assert!(matches!(error, Error::Driver { call: "cuLaunchKernelEx", .. }));
    assert_eq!(error.to_string(), text);
    assert_eq!(calls().last().unwrap(), "cuCtxPopCurrent_v2");
}

#[test]
fn names_the_driver_call_that_fails() {
    with_mock(&[KERNELS, ("MOCK_FAIL", "cuLaunchKernelEx:700")], || {
        fails_to_launch("cuLaunchKernelEx failed with CUDA_ERROR_ILLEGAL_ADDRESS (700)");
    });
}

#[test]
fn survives_a_code_without_a_name() {
    with_mock(&[KERNELS, ("MOCK_FAIL", "cuLaunchKernelEx:99999")], || {
        fails_to_launch("cuLaunchKernelEx failed with an unknown error (99999)");
    });
}

#[test]
fn asks_for_occupancy_once() {
    with_mock(&[KERNELS], || {
        let device = open();
        for round in 0..2 {
            for block in 1..=8 {
                assert_eq!(device.max_blocks("scale", 32 * block, 1024).unwrap(), 2 * 132);
            }
            assert_eq!(calls().len(), if round == 0 { 8 } else { 0 });
        }
        // More shapes than the cache holds are answered all the same.
        assert_eq!(device.max_blocks("scale", 512, 0).unwrap(), 2 * 132);
        assert!(device.max_blocks("none", 512, 0).is_err());
    });
}

#[test]
fn same_name_twice_is_refused() {
    with_mock(&[("MOCK_KERNELS", "scale:24,scale:24")], || {
        let error = refusal(Device::open_with(0, IMAGES)).to_string();
        assert!(error.contains("two kernels are called scale") && error.contains("kernels/first.cu"), "{error}");
        let calls = calls();
        assert!(calls.iter().any(|call| call == "cuLibraryUnload"));
        assert_eq!(calls.last().unwrap(), "cuDevicePrimaryCtxRelease_v2");
    });
}

#[test]
fn checking_turns_a_fault_into_the_status() {
    with_mock(&[KERNELS, ("MOE_CHECK", "1"), ("MOCK_FAULT", "6")], || {
        let device = open();
        let mut report = moe_device_report_t::default();
        let run = |report| device.run(report, null_mut(), |l| l.launch(&scale(), &params(l)));
        for caller in [null_mut(), &raw mut report] {
            let error = run(caller).unwrap_err();
            assert!(matches!(&error, Error::DeviceFault(text) if text.starts_with("count 0")), "{error}");
        }
        assert_eq!(report.what, MOE_FAULT_COUNT);
        assert!(calls().iter().any(|call| call == "cuStreamSynchronize"));
        // An earlier fault of the caller's stays, and hides no new one.
        report.what = MOE_FAULT_OVERFLOW;
        assert!(run(&raw mut report).is_err());
        assert_eq!(report.what, MOE_FAULT_OVERFLOW);
    });
}

#[test]
fn checking_leaves_a_capturing_stream_alone() {
    with_mock(&[KERNELS, ("MOE_CHECK", "1"), ("MOCK_FAULT", "6"), ("MOCK_CAPTURING", "1")], || {
        let device = open();
        let mut report = moe_device_report_t::default();
        device.run(&raw mut report, null_mut(), |l| l.launch(&scale(), &params(l))).unwrap();
        assert_eq!(report.what, MOE_FAULT_COUNT);
        let calls = calls();
        assert!(!calls.iter().any(|call| call.starts_with("cuMem") || call == "cuStreamSynchronize"), "{calls:?}");
    });
}

#[test]
fn checking_asks_whether_the_gpu_reaches_a_pointer() {
    with_mock(&[KERNELS, ("MOE_CHECK", "1"), ("MOCK_BAD_POINTER", "0x1000")], || {
        let device = open();
        let check = |address: usize| pointers::check("args.x.data", address as *const u8);
        check(0x1000).expect("outside a call there is no device to ask");
        let watch = pointers::watch(&device);
        check(0).unwrap();
        check(0x2000).unwrap();
        assert_eq!(check(0x1000).unwrap_err().to_string(), "args.x.data is 0x1000; memory that GPU 0 can reach");
        drop(watch);
        check(0x1000).unwrap();
    });
}

#[test]
fn no_driver() {
    with_driver(Driver::Broken, &[], || {
        let error = refusal(Device::open(0));
        assert!(
            matches!(error, Error::NoDriver(_)) && error.to_string().starts_with("no CUDA driver was found"),
            "{error}"
        );
    });
}

#[test]
fn a_driver_without_a_symbol() {
    with_driver(Driver::Lacking("cuLibraryLoadData"), &[], || {
        let error = refusal(Device::open(0));
        assert!(
            matches!(error, Error::NoDriver(_)) && error.to_string().contains("has no cuLibraryLoadData"),
            "{error}"
        );
    });
}

#[test]
fn an_old_driver() {
    with_driver(Driver::Lacking("cuLibraryLoadData"), &[("MOCK_VERSION", "12020")], || {
        let error = refusal(Device::open(0)).to_string();
        assert!(error.starts_with("the driver is of CUDA 12.2; driver 5"), "{error}");
        assert!(!calls().iter().any(|call| call == "cuInit"));
    });
}

#[test]
fn a_toolkits_stub() {
    with_mock(&[("MOCK_FAIL", "cuInit:34")], || {
        let error = refusal(Device::open(0));
        assert!(matches!(error, Error::NoDriver(_)) && error.to_string().contains("stub"), "{error}");
    });
}

#[test]
fn a_driver_that_does_not_start() {
    with_mock(&[("MOCK_FAIL", "cuInit:803")], || {
        let error = refusal(Device::open(0));
        assert!(matches!(error, Error::NoDriver(_)) && error.to_string().contains("cuInit failed with"), "{error}");
    });
}

#[test]
fn no_gpu() {
    with_mock(&[("MOCK_FAIL", "cuInit:100")], || {
        let error = refusal(Device::open(0));
        assert!(matches!(error, Error::UnsupportedDevice(_)) && error.to_string().contains("no GPU"), "{error}");
    });
}

#[test]
fn no_such_gpu() {
    with_mock(&[("MOCK_DEVICES", "2")], || {
        assert!(matches!(refusal(Device::open(2)), Error::UnsupportedDevice(_)));
        assert!(Device::open_with(1, IMAGES).is_ok());
    });
}

#[test]
fn an_old_gpu() {
    with_mock(&[("MOCK_CAPABILITY", "75")], || {
        let error = refusal(Device::open(0));
        assert!(matches!(error, Error::UnsupportedDevice(_)), "{error}");
        assert_eq!(error.to_string(), "GPU 0 has compute capability 7.5; 8.0 (A100) or newer is needed");
        assert!(!calls().iter().any(|call| call == "cuDevicePrimaryCtxRetain"));
    });
}

#[test]
fn a_gpu_that_the_build_has_no_code_for() {
    with_mock(&[("MOCK_FAIL", "cuLibraryLoadData:209")], || {
        let error = refusal(Device::open_with(0, IMAGES));
        assert!(
            matches!(error, Error::UnsupportedDevice(_)) && error.to_string().contains("MOE_CUDA_ARCHS"),
            "{error}"
        );
        assert_eq!(calls().last().unwrap(), "cuDevicePrimaryCtxRelease_v2");
    });
}
