"""A fleet's operator on the vendor's cloud SDK: tags, groups, and upgrade tasks in all their forms.

Everything goes through the unmodified SDK and is read back into the SDK's own models.
Devices do not run in here: a line `device {...}` asks whoever started this program to
have that device connect and upgrade, with `fail_code` to fail each time; `gone {...}`
asks to have it disconnect for good. Where the server is and who signs stands in the
environment, see `Server`. Exit status 0: everything fitted.
"""

import json
import re
from datetime import datetime, timedelta, timezone
from typing import Any

from cloud import (
    Cloud,
    OwnCalls,
    Server,
    Signatures,
    expect,
    expect_error,
    expect_fields,
    expect_match,
    finish,
    wait_for,
)
from huaweicloudsdkiotda.v5 import *

UNKNOWN_TASK = "The batch task does not exist."
WRONG_TASK_STATUS = "Operation not allowed. The status of the batch task does not allow it."
WRONG_TARGET_STATUS = "Invalid input. The target cannot be operated in its current status."
COUNTERS = ("processing", "success", "fail", "waitting", "fail_wait_retry", "stopped", "removed")


def general_time(moment: datetime) -> str:
    return moment.strftime("%Y%m%dT%H%M%SZ")


class Fleet:
    """A product, a firmware package for it, and its devices."""

    def __init__(self, cloud: Cloud, app_id: str, edition: str, own: OwnCalls) -> None:
        self.cloud = cloud
        self.app_id = app_id
        self.product_id = cloud.call(
            "create_product",
            201,
            CreateProductRequest(
                body=AddProduct(
                    name=f"Pump-{edition}",
                    device_type="Pump",
                    protocol_type="MQTT",
                    data_format="json",
                    app_id=app_id,
                    service_capabilities=[],
                )
            ),
        ).product_id
        bucket, key = "firmware", f"pump/{edition}/2.0.0.bin"
        own.put(f"objects/{bucket}/{key}", bytes(range(256)) * 300, "application/octet-stream")
        self.package_id = cloud.call(
            "create_ota_package",
            201,
            CreateOtaPackageRequest(
                body=CreateOtaPackage(
                    app_id=app_id,
                    package_type="firmwarePackage",
                    product_id=self.product_id,
                    version="2.0.0",
                    file_location=FileLocation(
                        obs_location=ObsLocation(region_name="otaru", bucket_name=bucket, object_key=key)
                    ),
                )
            ),
        ).package_id
        self.devices = [
            cloud.call(
                "add_device",
                201,
                AddDeviceRequest(
                    body=AddDevice(
                        node_id=node_id,
                        device_name=f"Pump-{node_id}",
                        product_id=self.product_id,
                        app_id=app_id,
                    )
                ),
            )
            for node_id in ("north", "east", "south", "west")
        ]
        self.device_ids = [device.device_id for device in self.devices]

    def connect(self, index: int, **behaviour: Any) -> None:
        device = self.devices[index]
        wanted = {
            "device_id": device.device_id,
            "secret": device.auth_info.secret,
            "firmware": "1.0.0",
            **behaviour,
        }
        print(f"device {json.dumps(wanted)}", flush=True)

    def disconnect(self, index: int) -> None:
        device_id = self.device_ids[index]
        print(f"gone {json.dumps({'device_id': device_id})}", flush=True)

        def is_offline() -> bool | None:
            shown = self.cloud.call("show_device", 200, ShowDeviceRequest(device_id=device_id))
            return True if shown.status == "OFFLINE" else None

        wait_for(f"{device_id} offline", 20, is_offline)

    def firmware(self, index: int) -> str | None:
        shown = self.cloud.call("show_device", 200, ShowDeviceRequest(device_id=self.device_ids[index]))
        return shown.fw_version

    def start(self, name: str, **fields: Any) -> Any:
        """Creates a task and checks that the answer, the list and the page of the task echo it."""
        sent: dict[str, Any] = {
            "task_name": name,
            "task_type": "firmwareUpgrade",
            "document": {"package_ids": [self.package_id]},
            **fields,
        }
        made = self.cloud.call(
            "create_batch_task",
            201,
            CreateBatchTaskRequest(body=CreateBatchTask(app_id=self.app_id, **sent)),
        )
        listed = self.cloud.call(
            "list_batch_tasks",
            200,
            ListBatchTasksRequest(task_type="firmwareUpgrade", app_id=self.app_id, limit=1),
        ).batchtasks[0]
        shown = self.show(made.task_id).batchtask
        expected = {
            "need_confirm": False,
            "task_ext_info": None,
            "targets": [],
            "targets_filter": None,
            "task_policy": None,
            **sent,
            "task_id": made.task_id,
            "create_time": made.create_time,
        }
        policy = expected.pop("task_policy")
        for what, task in (("created task", made), ("listed task", listed), ("shown task", shown)):
            expect_fields(what, task, **expected)
            given = None if task.task_policy is None else task.task_policy.to_dict()
            expect(f"{what}.task_policy", given, None if policy is None else policy.to_dict())
        return made

    def show(self, task_id: str, **query: Any) -> Any:
        return self.cloud.call("show_batch_task", 200, ShowBatchTaskRequest(task_id=task_id, **query))

    def when(self, task_id: str, status: str, **counted: int) -> Any:
        """The task as soon as it has this status and exactly these counters."""
        wanted = {counter: counted.get(counter, 0) for counter in COUNTERS}

        def look() -> Any | None:
            shown = self.show(task_id)
            progress = shown.batchtask.task_progress
            is_there = shown.batchtask.status == status and all(
                getattr(progress, counter) == count for counter, count in wanted.items()
            )
            return shown if is_there else None

        shown = wait_for(f"task {status} {counted}", 30, look)
        expect("total", shown.batchtask.task_progress.total, sum(counted.values()))
        return shown

    def operate(
        self, operation: str, task_id: str, targets: list[str] | None = None
    ) -> list[tuple[Any, ...]]:
        request = {
            "confirm": ConfirmBatchTaskRequest,
            "retry": RetryBatchTaskRequest,
            "stop": StopBatchTaskRequest,
        }[operation]
        answer = self.cloud.call(
            f"{operation}_batch_task", 200, request(task_id=task_id, body=BatchTargets(targets=targets))
        )
        return [(item.target, item.status, item.error_code, item.error_msg) for item in answer.targets]

    def refuses(self, operation: str, task_id: str) -> None:
        expect_error(403, "IOTDA.014971", WRONG_TASK_STATUS, lambda: self.operate(operation, task_id))

    def delete(self, task_id: str) -> None:
        self.cloud.call("delete_batch_task", 204, DeleteBatchTaskRequest(task_id=task_id))
        expect_error(404, "IOTDA.014970", UNKNOWN_TASK, lambda: self.show(task_id))


def done(*targets: str) -> list[tuple[Any, ...]]:
    return [(target, "success", None, None) for target in targets]


def not_done(target: str) -> tuple[Any, ...]:
    return (target, "failure", "IOTDA.014219", WRONG_TARGET_STATUS)


def use_tags(cloud: Cloud, fleet: Fleet) -> None:
    north, east, south, _ = fleet.device_ids

    def bind(device_id: str, **tags: str | None) -> None:
        cloud.call(
            "tag_device",
            200,
            TagDeviceRequest(
                body=BindTagsDTO(
                    resource_type="device",
                    resource_id=device_id,
                    tags=[TagV5DTO(tag_key=key, tag_value=value) for key, value in tags.items()],
                )
            ),
        )

    def unbind(device_id: str, *keys: str) -> None:
        cloud.call(
            "untag_device",
            200,
            UntagDeviceRequest(
                body=UnbindTagsDTO(resource_type="device", resource_id=device_id, tag_keys=list(keys))
            ),
        )

    def tags_of(device_id: str) -> dict[str, str]:
        shown = cloud.call("show_device", 200, ShowDeviceRequest(device_id=device_id))
        return {tag.tag_key: tag.tag_value for tag in shown.tags}

    def find(*tags: TagV5DTO, **page: Any) -> Any:
        return cloud.call(
            "list_resources_by_tags",
            200,
            ListResourcesByTagsRequest(
                body=QueryResourceByTagsDTO(resource_type="device", tags=list(tags)), **page
            ),
        )

    bind(north, ring="canary", site="Ufer_3", 标签="值")
    expect("bound tags", tags_of(north), {"ring": "canary", "site": "Ufer_3", "标签": "值"})
    bind(north, ring="early")
    unbind(north, "标签")
    expect("tags bound anew", tags_of(north), {"ring": "early", "site": "Ufer_3"})
    bind(east, ring="canary")
    bind(south, ring="canary")
    found = find(TagV5DTO(tag_key="ring", tag_value="canary"))
    expect("tagged", sorted(item.resource_id for item in found.resources), sorted([east, south]))
    expect("count of the tagged", found.page.count, 2)
    either = find(TagV5DTO(tag_key="ring", tag_value="early"), TagV5DTO(tag_key="ring"), limit=2)
    rest = find(TagV5DTO(tag_key="ring"), limit=2, marker=either.page.marker)
    expect(
        "tagged, in two pages",
        sorted(item.resource_id for item in either.resources + rest.resources),
        sorted([north, east, south]),
    )
    expect("count of both pages", (either.page.count, rest.page.count), (3, 3))
    expect("tagged otherwise", find(TagV5DTO(tag_key="ring", tag_value="late")).resources, [])
    expect_error(
        400,
        "IOTDA.004002",
        "Invalid input. The tag_key iot_ring cannot start with 'iot_'.",
        lambda: bind(north, iot_ring="x"),
    )
    expect_error(
        403,
        "IOTDA.004900",
        "Operation not allowed. The number of tags exceeds the upper limit.",
        lambda: bind(north, **{f"key{number}": "x" for number in range(9)}),
    )
    expect_error(
        400, "IOTDA.004901", "Invalid input. The tag_key is not bound.", lambda: unbind(north, "标签")
    )
    listed = cloud.call("list_devices", 200, ListDevicesRequest(product_id=fleet.product_id))
    expect(
        "tags of listed devices",
        {device.node_id: len(device.tags) for device in listed.devices},
        {"north": 2, "east": 1, "south": 1, "west": 0},
    )
    print("tags: bound, bound anew, found, unbound, refused", flush=True)


def use_groups(cloud: Cloud, fleet: Fleet, edition: str) -> tuple[str, str]:
    """Leaves a static group with the first device, and a dynamic one with the second and the third."""
    north, east, south, west = fleet.device_ids
    app_id = fleet.app_id
    began = datetime.now(timezone.utc)

    def add(**fields: Any) -> Any:
        return cloud.call("add_device_group", 201, AddDeviceGroupRequest(body=AddDeviceGroupDTO(**fields)))

    def act(action: str, group_id: str, device_id: str) -> None:
        cloud.call(
            "create_or_delete_device_in_group",
            200,
            CreateOrDeleteDeviceInGroupRequest(group_id=group_id, action_id=action, device_id=device_id),
        )

    def members(group_id: str, **page: Any) -> Any:
        return cloud.call("show_devices_in_group", 200, ShowDevicesInGroupRequest(group_id=group_id, **page))

    def groups(**query: Any) -> Any:
        return cloud.call("list_device_groups", 200, ListDeviceGroupsRequest(app_id=app_id, **query))

    def show(group_id: str) -> Any:
        return cloud.call("show_device_group", 200, ShowDeviceGroupRequest(group_id=group_id))

    def delete(group_id: str) -> None:
        cloud.call("delete_device_group", 204, DeleteDeviceGroupRequest(group_id=group_id))

    name = f"Pumps of {edition}"
    made = add(name=name, description="On the left bank", app_id=app_id)
    expected: dict[str, Any] = {
        "group_id": made.group_id,
        "name": name,
        "description": "On the left bank",
        "group_type": "STATIC",
        "super_group_id": None,
    }
    expect_match("group_id", made.group_id, re.compile(r"[0-9a-f-]{1,36}"))
    expect_fields("created group", made, dynamic_group_rule=None, **expected)
    expect_fields("shown group", show(made.group_id), dynamic_group_rule=None, **expected)
    below = add(name=f"Below {edition}", app_id=app_id, super_group_id=made.group_id, group_type="STATIC")
    expect_fields("group below", below, super_group_id=made.group_id, description=None)
    expect_error(
        400,
        "IOTDA.014984",
        "Invalid input. The device group name already exists.",
        lambda: add(name=name, app_id=app_id),
    )
    expect_error(
        404,
        "IOTDA.014980",
        "The device group does not exist.",
        lambda: show("00000000-0000-0000-0000-000000000000"),
    )

    rule = f"product_id = '{fleet.product_id}' and tag_key = 'ring' and tag_value = 'canary'"
    dynamic = add(name=f"Canaries {edition}", app_id=app_id, group_type="DYNAMIC", dynamic_group_rule=rule)
    expect_fields("dynamic group", dynamic, group_type="DYNAMIC", dynamic_group_rule=rule)
    expect_fields(
        "shown dynamic group", show(dynamic.group_id), group_type="DYNAMIC", dynamic_group_rule=rule
    )
    expect_error(
        400,
        "IOTDA.000006",
        "Invalid input data.",
        lambda: add(name="Broken", app_id=app_id, group_type="DYNAMIC", dynamic_group_rule="product_id ="),
    )

    found = groups(name=name)
    expect("groups of the name", found.page.count, 1)
    expect_fields("listed group", found.device_groups[0], **expected)
    found = groups(group_type="DYNAMIC", limit=1)
    expect("newest dynamic group", found.device_groups[0].group_id, dynamic.group_id)
    expect(
        "rule of a listed group",
        "dynamic_group_rule" in json.loads(found.raw_content)["device_groups"][0],
        False,
    )
    pages = [groups(limit=2), groups(limit=2, offset=2)]
    expect(
        "newest groups",
        [group.group_id for page in pages for group in page.device_groups][:3],
        [dynamic.group_id, below.group_id, made.group_id],
    )
    second = groups(limit=1, marker=groups(limit=1).page.marker)
    expect("group after the marker", second.device_groups[0].group_id, below.group_id)
    changed = groups(last_modified_time=general_time(began - timedelta(seconds=2)))
    expect(
        "groups changed since",
        {below.group_id, made.group_id} <= {item.group_id for item in changed.device_groups},
        True,
    )
    expect(
        "groups changed tomorrow",
        groups(last_modified_time=general_time(began + timedelta(days=1))).device_groups,
        [],
    )
    renamed = cloud.call(
        "update_device_group",
        200,
        UpdateDeviceGroupRequest(
            group_id=made.group_id, body=UpdateDeviceGroupDTO(name=f"{name}, all", description="左岸")
        ),
    )
    expected.update(name=f"{name}, all", description="左岸")
    expect_fields("updated group", renamed, **expected)

    for device_id in (north, east, west, west):
        act("addDevice", made.group_id, device_id)
    inside = members(made.group_id)
    expect("count of members", inside.page.count, 3)
    expect("members", {item.device_id for item in inside.devices}, {north, east, west})
    expect_fields(
        "member",
        next(item for item in inside.devices if item.device_id == north),
        node_id="north",
        device_name="Pump-north",
        product_id=fleet.product_id,
    )
    paged = members(made.group_id, limit=2)
    paged_on = members(made.group_id, limit=2, marker=paged.page.marker)
    expect(
        "members, in two pages",
        [item.device_id for item in paged.devices + paged_on.devices],
        [item.device_id for item in inside.devices],
    )
    expect(
        "members of the dynamic group",
        {item.device_id for item in members(dynamic.group_id).devices},
        {east, south},
    )
    of_east = cloud.call("list_device_groups_by_device", 200, ListDeviceGroupsByDeviceRequest(device_id=east))
    by_id = {group.group_id: group for group in of_east.device_groups}
    expect("groups of a device", set(by_id), {made.group_id, dynamic.group_id})
    expect_fields("group of a device", by_id[made.group_id], **expected)
    for device_id in (east, west):
        act("removeDevice", made.group_id, device_id)
    expect("members left", [item.device_id for item in members(made.group_id).devices], [north])
    expect_error(
        403,
        "IOTDA.014982",
        "Operation not allowed. The device is not in the device group.",
        lambda: act("removeDevice", made.group_id, west),
    )
    expect_error(
        403,
        "IOTDA.014989",
        "Operation not allowed. The devices of a dynamic device group follow its rule.",
        lambda: act("addDevice", dynamic.group_id, west),
    )
    expect_error(
        404, "IOTDA.014000", "The device does not exist.", lambda: act("addDevice", made.group_id, "nobody")
    )
    expect_error(
        403,
        "IOTDA.014981",
        "Operation not allowed. The device group is not empty.",
        lambda: delete(made.group_id),
    )
    delete(below.group_id)
    expect_error(404, "IOTDA.014980", "The device group does not exist.", lambda: show(below.group_id))
    print("groups: made, listed, shown, changed, filled, emptied, refused", flush=True)
    return made.group_id, dynamic.group_id


def schedule(fleet: Fleet, group_id: str) -> None:
    north = fleet.device_ids[0]
    fleet.connect(0)
    time = general_time(datetime.now(timezone.utc) + timedelta(seconds=4))
    task = fleet.start(
        "scheduled",
        targets_filter={"group_ids": [group_id]},
        task_policy=TaskPolicy(schedule_time=time, retry_count=2, retry_interval=5),
        task_ext_info={"wave": 1, "notes": {"名": "北"}},
    )
    waiting = fleet.when(task.task_id, "Waitting", waitting=1)
    expect_fields(
        "waiting subtask", waiting.task_details[0], target=north, status="Waitting", output=None, error=None
    )
    listed = fleet.cloud.call(
        "list_batch_tasks",
        200,
        ListBatchTasksRequest(task_type="firmwareUpgrade", app_id=fleet.app_id, status="Waitting"),
    )
    expect("waiting tasks", [item.task_id for item in listed.batchtasks], [task.task_id])
    held = fleet.show(task.task_id, task_detail_status="Waitting", target=north, limit=5)
    expect("waiting details", (len(held.task_details), held.page.count), (1, 1))
    expect("details of a stranger", fleet.show(task.task_id, target="stranger").page.count, 0)
    fleet.refuses("retry", task.task_id)
    finished = fleet.when(task.task_id, "Success", success=1)
    expect("firmware after the schedule", fleet.firmware(0), "2.0.0")
    expect_fields("upgraded subtask", finished.task_details[0], target=north, status="Success", error=None)
    fleet.refuses("stop", task.task_id)
    fleet.delete(task.task_id)
    expect_error(
        400,
        "IOTDA.000009",
        "Invalid input. Invalid time format.",
        lambda: fleet.start(
            "late",
            targets=[north],
            task_policy=TaskPolicy(
                schedule_time=general_time(datetime.now(timezone.utc) + timedelta(days=8))
            ),
        ),
    )
    print("task: scheduled, waited, upgraded at its time", flush=True)


def confirm(fleet: Fleet, group_id: str) -> None:
    _, east, south, _ = fleet.device_ids
    task = fleet.start("held", targets_filter={"group_ids": [group_id]}, need_confirm=True)
    fleet.connect(1)
    fleet.connect(2)
    fleet.when(task.task_id, "Waitting", waitting=2)
    expect(
        "confirmed",
        fleet.operate("confirm", task.task_id, [east, "stranger"]),
        [*done(east), not_done("stranger")],
    )
    fleet.when(task.task_id, "Processing", success=1, waitting=1)
    expect("confirmed as a whole", fleet.operate("confirm", task.task_id), done(south))
    fleet.when(task.task_id, "Success", success=2)
    expect("firmware after the confirmation", (fleet.firmware(1), fleet.firmware(2)), ("2.0.0", "2.0.0"))
    fleet.refuses("confirm", task.task_id)
    fleet.delete(task.task_id)
    print("task: waited for confirmation, confirmed in part and as a whole", flush=True)


def retry(fleet: Fleet) -> None:
    west = fleet.device_ids[3]
    fleet.connect(3, fail_code=10)
    patient = fleet.start(
        "patient", targets=[west], task_policy=TaskPolicy(retry_count=1, retry_interval=1440)
    )
    waiting = fleet.when(patient.task_id, "Processing", fail_wait_retry=1)
    expect_fields("subtask between attempts", waiting.task_details[0], target=west, status="FailWaitRetry")
    expect_fields(
        "reason",
        waiting.task_details[0].error,
        error_code="IOTDA.005011",
        error_msg="Firmware update failed",
    )
    expect(
        "details between attempts",
        fleet.show(patient.task_id, task_detail_status="FailWaitRetry").page.count,
        1,
    )
    expect("retried at once", fleet.operate("retry", patient.task_id), done(west))
    fleet.when(patient.task_id, "Processing", fail_wait_retry=1)
    expect("stopped between attempts", fleet.operate("stop", patient.task_id, [west]), done(west))
    fleet.when(patient.task_id, "Stopped", stopped=1)
    fleet.refuses("retry", patient.task_id)
    fleet.delete(patient.task_id)

    task = fleet.start("failing", targets=[west, "stranger"])
    failed = fleet.when(task.task_id, "Fail", fail=2)
    errors = {detail.target: detail.error for detail in failed.task_details}
    expect("reason of the device", errors[west].error_msg, "Firmware update failed")
    expect("reason of the stranger", errors["stranger"].error_msg, "The device does not exist.")
    fleet.disconnect(3)
    expect(
        "retried",
        fleet.operate("retry", task.task_id, [west, fleet.device_ids[0]]),
        [*done(west), not_done(fleet.device_ids[0])],
    )
    fleet.when(task.task_id, "Processing", processing=1, fail=1)
    expect_error(
        403,
        "IOTDA.014971",
        WRONG_TASK_STATUS,
        lambda: fleet.cloud.call("delete_batch_task", 204, DeleteBatchTaskRequest(task_id=task.task_id)),
    )
    fleet.connect(3)
    fleet.when(task.task_id, "PartialSuccess", success=1, fail=1)
    expect("retried as a whole", fleet.operate("retry", task.task_id), done("stranger"))
    fleet.when(task.task_id, "PartialSuccess", success=1, fail=1)
    expect("firmware after the retry", fleet.firmware(3), "2.0.0")
    fleet.delete(task.task_id)
    print("task: failed, retried, upgraded", flush=True)


def stop(fleet: Fleet) -> None:
    north, east, south, _ = fleet.device_ids
    for index in (0, 1, 2):
        fleet.disconnect(index)
    task = fleet.start("stopped", targets=[north, east, south, north])
    fleet.when(task.task_id, "Processing", processing=3)
    expect(
        "stopped in part",
        fleet.operate("stop", task.task_id, [east, "stranger"]),
        [*done(east), not_done("stranger")],
    )
    fleet.when(task.task_id, "Processing", processing=2, stopped=1)
    expect("stopped as a whole", fleet.operate("stop", task.task_id), done(north, south))
    stopped = fleet.when(task.task_id, "Stopped", stopped=3)
    expect("order of the details", [detail.target for detail in stopped.task_details], [south, east, north])
    page = fleet.show(task.task_id, limit=2)
    rest = fleet.show(task.task_id, limit=2, marker=page.page.marker)
    expect(
        "details, in two pages",
        [detail.target for detail in page.task_details + rest.task_details],
        [south, east, north],
    )
    for operation in ("stop", "retry", "confirm"):
        fleet.refuses(operation, task.task_id)
    fleet.delete(task.task_id)

    lost = fleet.start("lost", targets_filter={"group_ids": ["00000000-0000-0000-0000-000000000000"]})
    failed = fleet.when(lost.task_id, "Fail")
    expect(
        "why the task failed",
        failed.batchtask.status_desc,
        "The device group 00000000-0000-0000-0000-000000000000 does not exist.",
    )
    expect("subtasks of a task without a group", failed.task_details, [])
    fleet.delete(lost.task_id)
    print("task: stopped in part and as a whole, deleted", flush=True)


def clear(fleet: Fleet, static_id: str, dynamic_id: str) -> None:
    cloud = fleet.cloud
    cloud.call(
        "create_or_delete_device_in_group",
        200,
        CreateOrDeleteDeviceInGroupRequest(
            group_id=static_id, action_id="removeDevice", device_id=fleet.device_ids[0]
        ),
    )
    for group_id in (static_id, dynamic_id):
        cloud.call("delete_device_group", 204, DeleteDeviceGroupRequest(group_id=group_id))
    for device_id in fleet.device_ids:
        cloud.call("delete_device", 204, DeleteDeviceRequest(device_id=device_id))
    cloud.call("delete_ota_package", 204, DeleteOtaPackageRequest(package_id=fleet.package_id))
    cloud.call("delete_product", 204, DeleteProductRequest(product_id=fleet.product_id, app_id=fleet.app_id))
    print("deleted: groups, devices, package, product", flush=True)


def main() -> None:
    server = Server()
    signatures = Signatures(server.algorithm, server.region)
    owner = server.owner()
    cloud = server.client(owner, signatures)
    fleet = Fleet(cloud, server.app_id, server.signature, OwnCalls(server.endpoint, owner))
    use_tags(cloud, fleet)
    static_id, dynamic_id = use_groups(cloud, fleet, server.signature)
    schedule(fleet, static_id)
    confirm(fleet, dynamic_id)
    retry(fleet)
    stop(fleet)
    clear(fleet, static_id, dynamic_id)
    print(f"{signatures.count} requests signed in the {server.signature} form", flush=True)


if __name__ == "__main__":
    finish(main)
