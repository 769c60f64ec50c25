//! Identify (NVMe Base 2.0c, 5.17).

use zerocopy::{FromZeros, IntoBytes};

use crate::subsystem::{MAX_NSID, Namespace};

use super::super::controller::Controller;
use super::super::error::CommandError;
use super::super::spec::{
    CSI_NVM, Cmic, Cns, DescriptorType, Dlfeat, EntrySizes, Frmw, IDENTIFY_SIZE, IdentifyCdw10,
    IdentifyCdw11, IdentifyController, IdentifyNamespace, IdentifyNamespaceIndependent, LbaFormat,
    Lpa, Nmic, Nsattr, Nstat, Oacs, Oaes, Oncs, Sqe, Status, Version, Vwc, ascii,
};
use super::events::MAX_REQUESTS;
use super::features::WARNING_TEMPERATURE;
use super::{ABORT_LIMIT, ERROR_LOG_ENTRIES, Namespaces};

type Page = [u8; IDENTIFY_SIZE];

/// Composite temperature that is critical, in kelvins (100 °C).
const CRITICAL_TEMPERATURE: u16 = 373;

/// The data structure that an Identify command asks for.
///
/// # Errors
/// An unknown structure, or an identifier that does not fit it.
pub fn identify(
    controller: &Controller,
    sqe: &Sqe,
    namespaces: &Namespaces<'_>,
) -> Result<Page, CommandError> {
    let cdw10 = IdentifyCdw10::from_bits(sqe.cdw10);
    let cns = Cns(cdw10.cns());
    let by_command_set = matches!(
        cns,
        Cns::NAMESPACE_CSI | Cns::CONTROLLER_CSI | Cns::ACTIVE_NAMESPACES_CSI
    );
    if by_command_set && IdentifyCdw11::from_bits(sqe.cdw11).csi() != CSI_NVM {
        return Err(Status::IO_COMMAND_SET_NOT_SUPPORTED.into());
    }
    let subsystem = controller.subsystem();
    match cns {
        Cns::NAMESPACE if sqe.nsid == u32::MAX => Ok(page(&common_namespace())),
        Cns::NAMESPACE => {
            // Nobody tells of an image that was truncated or extended.
            subsystem.refresh_size(sqe.nsid);
            active(namespaces, sqe.nsid, |found| page(&namespace(found)))
        }
        Cns::CONTROLLER => Ok(page(&identify_controller(controller))),
        Cns::ACTIVE_NAMESPACES | Cns::ACTIVE_NAMESPACES_CSI => {
            controller.guest_looks(sqe.nsid);
            let now = controller.core().table();
            nsid_list(Namespaces(&now).active(), sqe.nsid)
        }
        Cns::NAMESPACE_DESCRIPTORS => {
            let found = namespaces.get(sqe.nsid)?.ok_or(Status::INVALID_FIELD)?;
            Ok(descriptors(found))
        }
        // The command set specific structures of the NVM command set: all fields may be zero.
        Cns::NAMESPACE_CSI => active(namespaces, sqe.nsid, |_| [0; IDENTIFY_SIZE]),
        Cns::CONTROLLER_CSI => Ok([0; IDENTIFY_SIZE]),
        Cns::NAMESPACE_INDEPENDENT => {
            active(namespaces, sqe.nsid, |found| page(&independent(found)))
        }
        Cns::ALLOCATED_NAMESPACES => nsid_list(subsystem.allocated().into_iter(), sqe.nsid),
        Cns::ALLOCATED_NAMESPACE => {
            namespaces.check_range(sqe.nsid)?;
            let found = subsystem.namespace(sqe.nsid);
            Ok(found.map_or([0; IDENTIFY_SIZE], |found| page(&namespace(&found))))
        }
        Cns::NAMESPACE_CONTROLLERS => {
            namespaces.check_range(sqe.nsid)?;
            Ok(controller_list(
                &subsystem.attached_to(sqe.nsid),
                cdw10.cntid(),
            ))
        }
        Cns::CONTROLLERS => Ok(controller_list(&subsystem.controllers(), cdw10.cntid())),
        Cns::IO_COMMAND_SETS => command_sets(controller, cdw10.cntid()),
        _ => Err(Status::INVALID_FIELD.into()),
    }
}

fn page(structure: &(impl IntoBytes + zerocopy::Immutable)) -> Page {
    let mut page = [0; IDENTIFY_SIZE];
    let bytes = structure.as_bytes();
    page[..bytes.len()].copy_from_slice(bytes);
    page
}

/// An active namespace's structure; zeroes for an inactive one (5.17.2.1).
fn active(
    namespaces: &Namespaces<'_>,
    nsid: u32,
    structure: impl FnOnce(&Namespace) -> Page,
) -> Result<Page, CommandError> {
    Ok(namespaces.get(nsid)?.map_or([0; IDENTIFY_SIZE], structure))
}

fn identify_controller(controller: &Controller) -> IdentifyController {
    let config = controller.config();
    let subsystem = controller.subsystem();
    let mut id = IdentifyController::new_zeroed();
    id.vid = super::super::pci::VENDOR;
    id.ssvid = super::super::pci::VENDOR;
    id.sn = ascii(&config.serial);
    id.mn = ascii(&config.model);
    id.fr = ascii(&config.firmware);
    id.rab = 6;
    // Locally administered.
    id.ieee = [0x00, 0x54, 0x52];
    id.cmic = Cmic::new().with_multiple_controllers(subsystem.shared());
    id.mdts = config.mdts;
    id.cntlid = controller.cntlid();
    id.ver = Version::V2_0.into_bits();
    id.oaes = Oaes::new().with_namespace_attribute(true);
    id.cntrltype = 1;
    id.oacs = Oacs::new().with_doorbell_buffer_config(true);
    id.acl_z = ABORT_LIMIT - 1;
    id.aerl_z = MAX_REQUESTS - 1;
    id.frmw = Frmw::new().with_slot1_read_only(true).with_slots(1);
    id.lpa = Lpa::new()
        .with_command_effects(true)
        .with_extended_data(true)
        .with_supported_pages(true);
    id.elpe_z = ERROR_LOG_ENTRIES - 1;
    id.wctemp = WARNING_TEMPERATURE;
    id.cctemp = CRITICAL_TEMPERATURE;
    id.sqes = EntrySizes::new().with_required(6).with_maximum(6);
    id.cqes = EntrySizes::new().with_required(4).with_maximum(4);
    id.nn = MAX_NSID;
    id.oncs = Oncs::new()
        .with_dataset_management(true)
        .with_write_zeroes(true)
        .with_save_select(true);
    id.vwc = Vwc::new().with_present(true).with_flush_broadcast(3);
    id.mnan = MAX_NSID;
    let nqn = subsystem.nqn().as_bytes();
    id.subnqn[..nqn.len()].copy_from_slice(nqn);
    id.psd[0].mp = 2500;
    id
}

/// What all namespaces have in common (NSID FFFFFFFFh).
fn common_namespace() -> IdentifyNamespace {
    let mut id = IdentifyNamespace::new_zeroed();
    id.dlfeat = Dlfeat::new().with_write_zeroes_deallocate(true);
    id.lbaf[0] = LbaFormat::new().with_lbads(9);
    id
}

fn namespace(namespace: &Namespace) -> IdentifyNamespace {
    let mut id = common_namespace();
    id.nsze = namespace.blocks();
    id.ncap = id.nsze;
    id.nuse = id.nsze;
    id.nmic = Nmic::new().with_shared(namespace.shared());
    id.nsattr = Nsattr::new().with_write_protected(namespace.read_only());
    if namespace.backend().discard_zeroes() {
        id.dlfeat.set_read_behaviour(1);
    }
    id.nguid = namespace.nguid();
    id.eui64 = namespace.eui64().to_be_bytes();
    // A shift of 9 or 12.
    #[allow(clippy::cast_possible_truncation)]
    let lbads = namespace.block_shift() as u8;
    id.lbaf[0] = LbaFormat::new().with_lbads(lbads);
    id
}

fn independent(namespace: &Namespace) -> IdentifyNamespaceIndependent {
    let mut id = IdentifyNamespaceIndependent::new_zeroed();
    id.nmic = Nmic::new().with_shared(namespace.shared());
    id.nsattr = Nsattr::new().with_write_protected(namespace.read_only());
    id.nstat = Nstat::new().with_nrdy(true);
    id
}

/// Namespace identification descriptors (5.17.2.3).
fn descriptors(namespace: &Namespace) -> Page {
    let mut list = Vec::new();
    let mut add = |kind: DescriptorType, id: &[u8]| {
        // At most 16 bytes.
        #[allow(clippy::cast_possible_truncation)]
        list.extend_from_slice(&[kind.0, id.len() as u8, 0, 0]);
        list.extend_from_slice(id);
    };
    add(DescriptorType::UUID, namespace.uuid().as_bytes());
    if namespace.eui64() != 0 {
        add(DescriptorType::EUI64, &namespace.eui64().to_be_bytes());
    }
    if namespace.nguid() != [0; 16] {
        add(DescriptorType::NGUID, &namespace.nguid());
    }
    add(DescriptorType::CSI, &[CSI_NVM]);
    let mut page = [0; IDENTIFY_SIZE];
    page[..list.len()].copy_from_slice(&list);
    page
}

/// NSIDs above `after`, ascending, at most 1,024 (5.17.2.2).
fn nsid_list(nsids: impl Iterator<Item = u32>, after: u32) -> Result<Page, CommandError> {
    if after >= u32::MAX - 1 {
        return Err(Status::INVALID_NAMESPACE.into());
    }
    let mut list = [0u32; IDENTIFY_SIZE / 4];
    let above = nsids.filter(|nsid| *nsid > after);
    for (to, nsid) in list.iter_mut().zip(above) {
        *to = nsid;
    }
    Ok(page(&list))
}

/// Controller identifiers from `from` on, ascending, behind their number (figure 276).
fn controller_list(cntlids: &[u16], from: u16) -> Page {
    let mut list = [0u16; IDENTIFY_SIZE / 2];
    let listed = cntlids.iter().filter(|cntlid| **cntlid >= from);
    let mut count = 0;
    for (to, cntlid) in list[1..].iter_mut().zip(listed) {
        *to = *cntlid;
        count += 1;
    }
    list[0] = count;
    page(&list)
}

/// I/O command set combinations: one, of the NVM command set alone (5.17.2.20).
fn command_sets(controller: &Controller, cntid: u16) -> Result<Page, CommandError> {
    if cntid != u16::MAX && !controller.subsystem().controllers().contains(&cntid) {
        return Err(Status::INVALID_FIELD.into());
    }
    let mut page = [0; IDENTIFY_SIZE];
    page[0] = 1 << CSI_NVM;
    Ok(page)
}
