"""A maker's back office on the vendor's cloud SDK, pointed at a running Otaru.

It makes a product, its modules, a package, a device and upgrade tasks through the
unmodified SDK, reads everything back into the SDK's own models and checks every field.

Where the server is and who signs stands in the environment, see `Server`. After creating
the device of the module task it prints one line `device {...}`: whoever started this
program then has that device connect and upgrade. Exit status 0: everything fitted.
"""

import hashlib
import json
import re
from typing import Any

from cloud import (
    GENERAL_TIME,
    MILLISECOND_TIME,
    Cloud,
    Mismatch,
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
from huaweicloudsdkcore.exceptions.exceptions import ClientRequestException
from huaweicloudsdkiotda.v5 import *

MODULE_FIELDS = {
    "module_id",
    "app_id",
    "product_id",
    "product_name",
    "module_name",
    "alias_name",
    "description",
    "create_time",
}


def make_product(cloud: Cloud, app_id: str, name: str) -> str:
    made = cloud.call(
        "create_product",
        201,
        CreateProductRequest(
            body=AddProduct(
                name=name,
                device_type="Gauge",
                protocol_type="MQTT",
                data_format="json",
                manufacturer_name="Otaru",
                industry="water",
                description="Level gauge; two parts, one modem.",
                app_id=app_id,
                service_capabilities=[
                    ServiceCapability(
                        service_id="Level",
                        service_type="Level",
                        properties=[
                            ServiceProperty(
                                property_name="level",
                                data_type="int",
                                method="R",
                                required=False,
                                min="0",
                                max="100",
                                unit="cm",
                            )
                        ],
                        commands=[],
                        events=[],
                        option="Optional",
                    )
                ],
            )
        ),
    )
    expected: dict[str, Any] = {
        "app_id": app_id,
        "name": name,
        "device_type": "Gauge",
        "protocol_type": "MQTT",
        "data_format": "json",
        "manufacturer_name": "Otaru",
        "industry": "water",
        "description": "Level gauge; two parts, one modem.",
        "product_id": made.product_id,
    }
    expect_fields("created product", made, **expected)
    expect_match("product create_time", made.create_time, GENERAL_TIME)
    shown = cloud.call("show_product", 200, ShowProductRequest(product_id=made.product_id, app_id=app_id))
    expect_fields("shown product", shown, create_time=made.create_time, app_name=made.app_name, **expected)
    expect("service", shown.service_capabilities[0].service_id, "Level")
    expect("property", shown.service_capabilities[0].properties[0].property_name, "level")
    listed = cloud.call("list_products", 200, ListProductsRequest(app_id=app_id, product_name=name))
    expect("product count", listed.page.count, 1)
    expect_fields("listed product", listed.products[0], **expected)
    return made.product_id


def make_modules(cloud: Cloud, app_id: str, product_id: str, product_name: str) -> list[str]:
    """Ten modules, then the refusals of the eleventh and of a name that is taken."""

    def create(name: str, alias: str | None = None, description: str | None = None) -> Any:
        return cloud.call(
            "create_ota_module",
            201,
            CreateOtaModuleRequest(
                body=CreateOtaModule(
                    app_id=app_id,
                    product_id=product_id,
                    module_name=name,
                    alias_name=alias,
                    description=description,
                )
            ),
        )

    made = create("MCU", "Micro Controller Unit", "Steuergerät für Messung, 主控")
    expect("fields of a module", set(json.loads(made.raw_content)), MODULE_FIELDS)
    expected = {
        "module_id": made.module_id,
        "app_id": app_id,
        "product_id": product_id,
        "product_name": product_name,
        "module_name": "MCU",
        "alias_name": "Micro Controller Unit",
        "description": "Steuergerät für Messung, 主控",
        "create_time": made.create_time,
    }
    expect_fields("created module", made, **expected)
    expect_match("module_id", made.module_id, re.compile(r"[A-Za-z0-9-]{1,36}"))
    expect_match("module create_time", made.create_time, GENERAL_TIME)
    expect_fields(
        "shown module",
        cloud.call("show_ota_module", 200, ShowOtaModuleRequest(module_id=made.module_id)),
        **expected,
    )

    changed = cloud.call(
        "update_ota_module",
        200,
        UpdateOtaModuleRequest(module_id=made.module_id, body=UpdateOtaModule(alias_name="主控")),
    )
    expect_fields("updated module", changed, **{**expected, "alias_name": "主控"})

    ids = [made.module_id] + [create(f"part-{number}").module_id for number in range(2, 11)]
    expect_error(
        403,
        "IOTDA.014952",
        "Operation not allowed. The number of OTA modules of the product exceeds the upper limit.",
        lambda: create("part-11"),
    )
    expect_error(
        400, "IOTDA.014951", "Invalid input. The OTA module name already exists.", lambda: create("MCU")
    )

    # Newest first, in pages of four, each beginning where the last one ended.
    found: list[str] = []
    marker: str | None = None
    while True:
        page = cloud.call(
            "list_ota_modules",
            200,
            ListOtaModulesRequest(app_id=app_id, product_id=product_id, limit=4, marker=marker),
        )
        expect("module count", page.page.count, 10)
        found += [module.module_id for module in page.modules]
        if not page.modules:
            break
        expect_match("marker", page.page.marker, re.compile(r"[0-9a-f]{24}"))
        marker = page.page.marker
    expect("listed modules", found, ids[::-1])
    last = cloud.call(
        "list_ota_modules",
        200,
        ListOtaModulesRequest(app_id=app_id, product_id=product_id, limit=1, offset=9),
    ).modules[0]
    expect_fields("listed module", last, **{**expected, "alias_name": "主控"})

    expect_error(
        404,
        "IOTDA.014950",
        "The OTA module does not exist.",
        lambda: cloud.call("show_ota_module", 200, ShowOtaModuleRequest(module_id="0" * 32)),
    )
    return ids


def make_package(
    cloud: Cloud, app_id: str, product_id: str, product_name: str, bucket: str, key: str, content: bytes
) -> str:
    digest = hashlib.sha256(content).hexdigest()
    made = cloud.call(
        "create_ota_package",
        201,
        CreateOtaPackageRequest(
            body=CreateOtaPackage(
                app_id=app_id,
                package_type="modulePackage",
                product_id=product_id,
                module_name="MCU",
                version="2.0.0",
                support_source_versions=["1.0.0", "1.1.0"],
                description="Second edition",
                custom_info='{"slot": "b"}',
                file_location=FileLocation(
                    obs_location=ObsLocation(
                        region_name="otaru", bucket_name=bucket, object_key=key, sign_method="SHA256"
                    )
                ),
            )
        ),
    )
    expected: dict[str, Any] = {
        "package_id": made.package_id,
        "app_id": app_id,
        "package_type": "modulePackage",
        "product_id": product_id,
        "product_name": product_name,
        "module_name": "MCU",
        "version": "2.0.0",
        "support_source_versions": ["1.0.0", "1.1.0"],
        "description": "Second edition",
        "custom_info": '{"slot": "b"}',
        "create_time": made.create_time,
    }
    location = {"region_name": "otaru", "bucket_name": bucket, "object_key": key, "sign_method": "SHA256"}
    expect_match("package create_time", made.create_time, GENERAL_TIME)
    shown = cloud.call("show_ota_package", 200, ShowOtaPackageRequest(package_id=made.package_id))
    for what, package in (("created package", made), ("shown package", shown)):
        expect_fields(what, package, **expected)
        expect_fields(what, package.file_location.obs_location, **location)
        expect("sign filled in by the server", package.file_location.obs_location.sign.lower(), digest)
    listed = cloud.call(
        "list_ota_package_info",
        200,
        ListOtaPackageInfoRequest(
            package_type="modulePackage", app_id=app_id, product_id=product_id, version="2.0.0"
        ),
    )
    expect("package count", listed.page.count, 1)
    expect_fields("listed package", listed.packages[0], **expected)
    expect(
        "fields of a listed package", "file_location" in json.loads(listed.raw_content)["packages"][0], False
    )
    return made.package_id


def make_device(cloud: Cloud, app_id: str, product_id: str, product_name: str, node_id: str) -> Any:
    made = cloud.call(
        "add_device",
        201,
        AddDeviceRequest(
            body=AddDevice(
                node_id=node_id,
                device_name="Gauge-at-the-weir",
                product_id=product_id,
                app_id=app_id,
                description="Left-bank",
                auth_info=AuthInfo(auth_type="SECRET", secure_access=True, timeout=0),
                extension_info={"shelf": 7},
            )
        ),
    )
    expected: dict[str, Any] = {
        "app_id": app_id,
        "device_id": f"{product_id}_{node_id}",
        "node_id": node_id,
        "gateway_id": f"{product_id}_{node_id}",
        "device_name": "Gauge-at-the-weir",
        "node_type": "GATEWAY",
        "description": "Left-bank",
        "product_id": product_id,
        "product_name": product_name,
        "status": "INACTIVE",
    }
    expect_fields("created device", made, **expected)
    expect("auth_type", made.auth_info.auth_type, "SECRET")
    expect_match("generated secret", made.auth_info.secret, re.compile(r"[A-Za-z0-9_-]{8,32}"))
    expect_match("device create_time", made.create_time, GENERAL_TIME)
    shown = cloud.call("show_device", 200, ShowDeviceRequest(device_id=made.device_id))
    expect_fields(
        "shown device", shown, create_time=made.create_time, extension_info={"shelf": 7}, **expected
    )
    listed = cloud.call(
        "list_devices",
        200,
        ListDevicesRequest(product_id=product_id, node_id=node_id, is_cascade_query=False),
    )
    expect("device count", listed.page.count, 1)
    expect_fields("listed device", listed.devices[0], **expected)
    return made


def make_task(cloud: Cloud, app_id: str, name: str, device_id: str, package_id: str) -> Any:
    made = cloud.call(
        "create_batch_task",
        201,
        CreateBatchTaskRequest(
            body=CreateBatchTask(
                app_id=app_id,
                task_name=name,
                task_type="moduleUpgrade",
                targets=[device_id],
                document={"package_ids": [package_id]},
            )
        ),
    )
    expect_fields(
        "created task",
        made,
        task_name=name,
        task_type="moduleUpgrade",
        targets=[device_id],
        document={"package_ids": [package_id]},
    )
    expect_match("task_id", made.task_id, re.compile(r"[0-9a-f]{24}"))
    expect_match("task create_time", made.create_time, GENERAL_TIME)
    listed = cloud.call(
        "list_batch_tasks", 200, ListBatchTasksRequest(task_type="moduleUpgrade", app_id=app_id)
    )
    expect("newest task", listed.batchtasks[0].task_id, made.task_id)
    return made


def task_when(cloud: Cloud, task_id: str, status: str) -> Any:
    """The task and its subtasks as soon as it has this status; a failed subtask's reason otherwise."""

    def look() -> Any | None:
        shown = cloud.call("show_batch_task", 200, ShowBatchTaskRequest(task_id=task_id))
        if shown.batchtask.status == status:
            return shown
        if shown.batchtask.status in ("Success", "Fail", "PartialSuccess", "Stopped"):
            raise Mismatch(f"wanted a task {status}, got {shown}")
        return None

    return wait_for(f"task {status}", 40, look)


def run(cloud: Cloud, app_id: str, edition: str, own: OwnCalls) -> None:
    product_name = f"Gauge-{edition}"
    product_id = make_product(cloud, app_id, product_name)
    print("product: made, shown, listed", flush=True)
    module_ids = make_modules(cloud, app_id, product_id, product_name)
    print("modules: ten made, the eleventh and a taken name refused", flush=True)

    bucket, key = "firmware", f"gauge/{edition}/mcu-2.0.0.bin"
    content = edition.encode() + bytes(range(256)) * 200
    own.put(f"objects/{bucket}/{key}", content, "application/octet-stream")
    package_id = make_package(cloud, app_id, product_id, product_name, bucket, key, content)
    print("package: uploaded, made, shown, listed", flush=True)

    absent = make_device(cloud, app_id, product_id, product_name, "absent")
    refused = make_task(cloud, app_id, f"refused_{edition}", absent.device_id, package_id)
    shown = task_when(cloud, refused.task_id, "Fail")
    expect_fields("failed task", shown.batchtask.task_progress, total=1, success=0, fail=1, waitting=0)
    expect_fields("failed subtask", shown.task_details[0], target=absent.device_id, status="Fail")
    # Nothing tells the server that such a device knows module notices: it sends none.
    expect("reason", shown.task_details[0].error.error_msg, "Unsupported package type")
    expect_match("error_code", shown.task_details[0].error.error_code, re.compile(r"IOTDA\.\d{6}"))
    cloud.call("delete_batch_task", 204, DeleteBatchTaskRequest(task_id=refused.task_id))
    print("task: failed with its reason, deleted", flush=True)

    # The operator says that it does; a device that never comes is then waited for.
    own.put(f"products/{product_id}/ota-profile", b'{"module_form": "native"}', "application/json")
    waiting = make_task(cloud, app_id, f"absent_{edition}", absent.device_id, package_id)
    shown = task_when(cloud, waiting.task_id, "Processing")
    expect_fields(
        "waiting task", shown.batchtask.task_progress, total=1, success=0, fail=0, stopped=0, removed=0
    )
    expect("targets of a task", [detail.target for detail in shown.task_details], [absent.device_id])
    expect_error(
        403,
        "IOTDA.014964",
        "Operation not allowed. The upgrade package is used by an unfinished task.",
        lambda: cloud.call("delete_ota_package", 204, DeleteOtaPackageRequest(package_id=package_id)),
    )
    expect_error(
        403,
        "IOTDA.014971",
        "Operation not allowed. The status of the batch task does not allow it.",
        lambda: cloud.call("delete_batch_task", 204, DeleteBatchTaskRequest(task_id=waiting.task_id)),
    )
    stopped = cloud.call(
        "stop_batch_task", 200, StopBatchTaskRequest(task_id=waiting.task_id, body=BatchTargets())
    )
    expect(
        "stop results",
        [(item.target, item.status) for item in stopped.targets],
        [(absent.device_id, "success")],
    )
    shown = task_when(cloud, waiting.task_id, "Stopped")
    expect("stopped subtask", shown.task_details[0].status, "Stopped")
    expect("stopped count", shown.batchtask.task_progress.stopped, 1)
    cloud.call("delete_batch_task", 204, DeleteBatchTaskRequest(task_id=waiting.task_id))
    expect_error(
        404,
        "IOTDA.014970",
        "The batch task does not exist.",
        lambda: cloud.call("show_batch_task", 200, ShowBatchTaskRequest(task_id=waiting.task_id)),
    )
    print("task: waited, stopped, deleted", flush=True)

    device = make_device(cloud, app_id, product_id, product_name, "weir")
    task = make_task(cloud, app_id, f"weir_{edition}", device.device_id, package_id)
    print(
        "device "
        + json.dumps(
            {
                "device_id": device.device_id,
                "secret": device.auth_info.secret,
                "module_name": "MCU",
                "module_version": "1.1.0",
            }
        ),
        flush=True,
    )
    done = task_when(cloud, task.task_id, "Success")
    detail = done.task_details[0]
    expect_fields(
        "finished task",
        done.batchtask,
        status="Success",
        targets=[device.device_id],
        document={"package_ids": [package_id]},
        task_type="moduleUpgrade",
    )
    expect_fields(
        "progress",
        done.batchtask.task_progress,
        total=1,
        success=1,
        fail=0,
        processing=0,
        waitting=0,
        fail_wait_retry=0,
        stopped=0,
        removed=0,
    )
    expect_fields("subtask", detail, target=device.device_id, status="Success")
    expect("subtask count", done.page.count, 1)
    empty = cloud.call(
        "show_batch_task", 200, ShowBatchTaskRequest(task_id=task.task_id, task_detail_status="Fail")
    )
    expect("failed subtasks", empty.task_details, [])
    upgraded = cloud.call("show_device", 200, ShowDeviceRequest(device_id=device.device_id))
    expect(
        "reported modules",
        [(part.module_name, part.module_version) for part in upgraded.modules],
        [("MCU", "2.0.0")],
    )
    expect_match("active_time", upgraded.active_time, MILLISECOND_TIME)
    print("task: the module was upgraded, Success", flush=True)

    expect_error(
        403,
        "IOTDA.014953",
        "Operation not allowed. The OTA module is used by upgrade packages.",
        lambda: cloud.call("delete_ota_module", 204, DeleteOtaModuleRequest(module_id=module_ids[0])),
    )
    expect_error(
        403,
        "IOTDA.013901",
        "Operation not allowed. The product has devices.",
        lambda: cloud.call("delete_product", 204, DeleteProductRequest(product_id=product_id, app_id=app_id)),
    )
    cloud.call("delete_batch_task", 204, DeleteBatchTaskRequest(task_id=task.task_id))
    cloud.call("delete_ota_package", 204, DeleteOtaPackageRequest(package_id=package_id))
    for module_id in module_ids:
        cloud.call("delete_ota_module", 204, DeleteOtaModuleRequest(module_id=module_id))
    remaining = cloud.call(
        "list_ota_modules", 200, ListOtaModulesRequest(app_id=app_id, product_id=product_id)
    )
    expect("modules after deletion", (remaining.modules, remaining.page.count), ([], 0))
    for device_id in (absent.device_id, device.device_id):
        cloud.call("delete_device", 204, DeleteDeviceRequest(device_id=device_id))
    cloud.call("delete_product", 204, DeleteProductRequest(product_id=product_id, app_id=app_id))
    expect_error(
        404,
        "IOTDA.013900",
        "The product does not exist.",
        lambda: cloud.call("show_product", 200, ShowProductRequest(product_id=product_id, app_id=app_id)),
    )
    print("deleted: task, package, modules, devices, product", flush=True)


def main() -> None:
    server = Server()
    signatures = Signatures(server.algorithm, server.region)
    stranger = server.client(server.credentials("not the secret key", server.project_id), signatures)
    try:
        stranger.call("show_applications", 200, ShowApplicationsRequest())
        raise Mismatch("a wrong secret key was accepted")
    except ClientRequestException as error:
        expect("status of a wrong signature", error.status_code, 401)
        expect("error_code of a wrong signature", error.error_code, "APIGW.0301")

    # The look-up of the project is always signed in the plain form, whatever the client does afterwards.
    lookup = server.credentials(server.secret_key, "")
    server.client(lookup, Signatures("SDK-HMAC-SHA256", server.region))
    expect("project found by the region's name", lookup.project_id, server.project_id)

    owner = server.owner()
    run(
        server.client(owner, signatures),
        server.app_id,
        server.signature,
        OwnCalls(server.endpoint, owner),
    )
    print(f"{signatures.count} requests signed in the {server.signature} form", flush=True)


if __name__ == "__main__":
    finish(main)
