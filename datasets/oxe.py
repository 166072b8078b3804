"""Open X-Embodiment datasets to one form: 7-D actions with the gripper's opening last, named states, camera roles.

One entry a dataset in `OXE`; a new one is a function and an entry. Keys and gripper rules were checked against
openvla/openvla, prismatic/vla/datasets/rlds/oxe/{configs,transforms}.py (OPENVLA below), rates against
thu-ml/RoboticsDiffusionTransformer, configs/dataset_control_freq.json (RDT), shapes and descriptions against the
TensorFlow Datasets catalog (TFDS). Numbers are those of the source: nothing is scaled, and no step is dropped.
"""

import numpy as np

from volar.datasets.oxe_entry import (
    ACTION,
    FRANKA,
    NO_STATE,
    OBSERVATION,
    Array,
    OxeDataset,
    axis_angle,
    column,
    delta,
    euler,
    gripper,
    inverted,
    joints,
    moved,
    no_state,
    observed,
    opened_by,
    position,
    quaternion,
    stacked,
)
from volar.datasets.rlds import RldsDataset, RldsEpisode
from volar.robots.errors import Unknown, UsageError

OPENVLA = "openvla/openvla prismatic/vla/datasets/rlds/oxe"
RDT = "RDT dataset_control_freq.json"
RELATIVE = "relative closing commands, accumulated to the opening they leave"
INVERTED = "1 - closedness, clipped to [0, 1]"
AS_STORED = "as stored: 1 is open"

_Pair = tuple[Array, Array]


def _bridge(e: RldsEpisode) -> _Pair:
    return e["steps/observation/state"], e["steps/action"]


def _bridge_oxe(e: RldsEpisode) -> _Pair:
    return observed(e, "state"), moved(e, e[ACTION + "open_gripper"])


def _fractal(e: RldsEpisode) -> _Pair:
    opening = opened_by(e[ACTION + "gripper_closedness_action"])
    return observed(e, "base_pose_tool_reached", "gripper_closed"), moved(e, opening)


def _kuka(e: RldsEpisode) -> _Pair:
    opening = opened_by(e[ACTION + "gripper_closedness_action"])
    return observed(e, "clip_function_input/base_pose_tool_reached", "gripper_closed"), moved(e, opening)


def _taco_play(e: RldsEpisode) -> _Pair:
    robot, action = e[OBSERVATION + "robot_obs"], e[ACTION + "rel_actions_world"]
    return stacked(robot[:, :7]), stacked(action[:, :6], np.clip(action[:, 6:], 0, 1))


def _jaco_play(e: RldsEpisode) -> _Pair:
    move = e[ACTION + "world_vector"]
    opening = opened_by(e[ACTION + "gripper_closedness_action"])
    return observed(e, "end_effector_cartesian_pos"), stacked(move, np.zeros_like(move), opening)


def _cable_routing(e: RldsEpisode) -> _Pair:
    return observed(e, "robot_state"), moved(e, np.zeros(e.steps))


def _roboturk(e: RldsEpisode) -> _Pair:
    return no_state(e), moved(e, inverted(e[ACTION + "gripper_closedness_action"]))


def _nyu_door(e: RldsEpisode) -> _Pair:
    return no_state(e), moved(e, opened_by(e[ACTION + "gripper_closedness_action"]))


def _viola(e: RldsEpisode) -> _Pair:
    opening = inverted(e[ACTION + "gripper_closedness_action"])
    return observed(e, "joint_states", "gripper_states"), moved(e, opening)


def _autolab_ur5(e: RldsEpisode) -> _Pair:
    opening = opened_by(e[ACTION + "gripper_closedness_action"])
    return stacked(e[OBSERVATION + "robot_state"][:, 6:14]), moved(e, opening)


def _toto(e: RldsEpisode) -> _Pair:
    return observed(e, "state"), moved(e, e[ACTION + "open_gripper"])


def _language_table(e: RldsEpisode) -> _Pair:
    move = e["steps/action"]  # (T, 2)
    return observed(e, "effector_translation"), stacked(move, np.zeros((e.steps, 4)), np.ones(e.steps))


def _language_table_instruction(e: RldsEpisode) -> str:
    """Unicode code points, ended by zeros."""
    codes = e[OBSERVATION + "instruction"][0].tolist()
    return "".join(map(chr, codes[: codes.index(0)] if 0 in codes else codes))


def _stanford_hydra(e: RldsEpisode) -> _Pair:
    state, action = e[OBSERVATION + "state"], e["steps/action"]
    return stacked(state[:, :3], state[:, 7:10], state[:, 24]), stacked(action[:, :6], inverted(action[:, 6]))


def _austin(e: RldsEpisode) -> _Pair:
    action = e["steps/action"]
    return stacked(e[OBSERVATION + "state"][:, :8]), stacked(action[:, :6], inverted(action[:, 6]))


def _bc_z(e: RldsEpisode) -> _Pair:
    move, turn, close = (
        e[ACTION + key] for key in ("future/xyz_residual", "future/axis_angle_residual", "future/target_close")
    )
    state = observed(e, "present/xyz", "present/axis_angle", "present/sensed_close")
    return state, stacked(move[:, :3], turn[:, :3], inverted(close))  # the next of the ten future waypoints


def _fmb(e: RldsEpisode) -> _Pair:
    return observed(e, "eef_pose", "state_gripper_pose"), stacked(e["steps/action"])


def _droid(e: RldsEpisode) -> _Pair:
    velocity, closed = (e["steps/action_dict/" + key] for key in ("cartesian_velocity", "gripper_position"))
    return observed(e, "cartesian_position", "gripper_position"), stacked(velocity, 1.0 - column(closed))


def _libero(e: RldsEpisode) -> _Pair:
    action = e["steps/action"]
    return observed(e, "state"), stacked(action[:, :6], inverted(action[:, 6]))


_TEXT = "steps/language_instruction"
_EXTERNAL = "_converted_externally_to_rlds"
_STATIC_AND_WRIST = {"primary": "image", "wrist": "wrist_image"}

OXE: dict[str, OxeDataset] = {
    "bridge": OxeDataset(
        tfds=("bridge_dataset", "bridge_orig"),
        robot="widowx",
        cameras={"primary": "image_0", "secondary": "image_1", "tertiary": "image_2", "wrist": "image_3"},
        state=position() + euler() + gripper(),
        action=delta(5),
        gripper=AS_STORED,
        source=f"rail-berkeley/bridge_data_v2 issue 26 (base_link, roll pitch yaw), {OPENVLA}, {RDT}",
        numbers=_bridge,
        instruction=_TEXT,
    ),
    "bridge_oxe": OxeDataset(
        tfds=("bridge",),
        robot="widowx",
        cameras={"primary": "image"},
        state=position() + euler() + gripper(),
        action=delta(5),
        gripper=AS_STORED,
        source=f"{OPENVLA}, {RDT}",
        numbers=_bridge_oxe,
    ),
    "fractal": OxeDataset(
        tfds=("fractal20220817_data",),
        robot="google_robot",
        cameras={"primary": "image"},
        state=position() + quaternion() + (("gripper_closed", "1"),),
        action=delta(3),
        gripper=RELATIVE,
        source=f"{OPENVLA}, {RDT}",
        numbers=_fractal,
    ),
    "kuka": OxeDataset(
        tfds=("kuka",),
        robot="kuka_iiwa",
        cameras={"primary": "image"},
        state=position() + quaternion() + (("gripper_closed", "1"),),
        action=delta(10),
        gripper=RELATIVE,
        source=f"{OPENVLA}, {RDT}",
        numbers=_kuka,
    ),
    "taco_play": OxeDataset(
        tfds=("taco_play",),
        robot=FRANKA,
        cameras={"primary": "rgb_static", "wrist": "rgb_gripper"},
        state=position() + euler() + gripper("m"),
        action=delta(15, unit="controller"),
        gripper=f"clipped to [0, 1]; 1 is open in {OPENVLA}, closed in the words of TFDS",
        source=f"TFDS (robot_obs: the width is element 6), {OPENVLA}, {RDT}",
        numbers=_taco_play,
    ),
    "jaco_play": OxeDataset(
        tfds=("jaco_play",),
        robot="jaco_2",
        cameras={"primary": "image", "wrist": "image_wrist"},
        state=position() + quaternion(),
        action=delta(10),
        gripper=RELATIVE,
        source=f"{OPENVLA}, {RDT}; rotations are not commanded",
        numbers=_jaco_play,
    ),
    "berkeley_cable_routing": OxeDataset(
        tfds=("berkeley_cable_routing",),
        robot=FRANKA,
        cameras={"primary": "image", "secondary": "top_image", "wrist": "wrist45_image"},
        state=tuple((f"robot_state_{i}", "1") for i in range(7)),
        action=delta(10),
        gripper="none is commanded: always 0 (closed)",
        source=f"{OPENVLA}, {RDT}; TFDS does not say what robot_state is",
        numbers=_cable_routing,
    ),
    "roboturk": OxeDataset(
        tfds=("roboturk",),
        robot="sawyer",
        cameras={"primary": "front_rgb"},
        state=NO_STATE,
        action=delta(10),
        gripper=INVERTED,
        source=f"{OPENVLA}, {RDT}",
        numbers=_roboturk,
    ),
    "nyu_door_opening": OxeDataset(
        tfds=("nyu_door_opening_surprising_effectiveness",),
        robot="hello_stretch",
        cameras={"wrist": "image"},
        state=NO_STATE,
        action=delta(3),
        gripper=RELATIVE,
        source=f"{OPENVLA}, {RDT}",
        numbers=_nyu_door,
    ),
    "viola": OxeDataset(
        tfds=("viola",),
        robot=FRANKA,
        cameras={"primary": "agentview_rgb", "wrist": "eye_in_hand_rgb"},
        state=joints(7) + gripper("m"),
        action=delta(20, unit="controller", rotation="rotation_vector"),
        gripper=INVERTED,
        source=f"TFDS, {OPENVLA}, {RDT}",
        numbers=_viola,
    ),
    "berkeley_autolab_ur5": OxeDataset(
        tfds=("berkeley_autolab_ur5",),
        robot="ur5",
        cameras={"primary": "image", "wrist": "hand_image"},
        state=position() + quaternion() + (("gripper_closed", "1"),),
        action=delta(5),
        gripper=RELATIVE,
        source=f"TFDS (delta in XYZ, delta in roll, pitch, yaw), {OPENVLA}, {RDT}",
        numbers=_autolab_ur5,
    ),
    "toto": OxeDataset(
        tfds=("toto",),
        robot=FRANKA,
        cameras={"primary": "image"},
        state=joints(7),
        action=delta(30),
        gripper=AS_STORED,
        source=f"TFDS, {OPENVLA}, {RDT}",
        numbers=_toto,
    ),
    "language_table": OxeDataset(
        tfds=("language_table",),
        robot="xarm6",
        cameras={"primary": "rgb"},
        state=(("ee_x", "m"), ("ee_y", "m")),
        action=delta(10),
        gripper="it has none: always 1",
        source=f"{OPENVLA}, {RDT}; motion in the plane",
        numbers=_language_table,
        instruction=_language_table_instruction,
    ),
    "stanford_hydra": OxeDataset(
        tfds=(f"stanford_hydra_dataset{_EXTERNAL}",),
        robot=FRANKA,
        cameras=_STATIC_AND_WRIST,
        state=position() + euler() + gripper(),
        action=delta(10),
        gripper=INVERTED,
        source=f"TFDS (state: 3 position, 4 quaternion, 3 Euler, 7 + 7 joints, 3 gripper), {OPENVLA}, {RDT}",
        numbers=_stanford_hydra,
        instruction=_TEXT,
    ),
    **{
        name: OxeDataset(
            tfds=(tfds,),
            robot=FRANKA,
            cameras=_STATIC_AND_WRIST,
            state=pose + gripper(),
            action=delta(20, unit="controller", rotation="rotation_vector"),
            gripper=INVERTED,
            source=f"{OPENVLA} (first 8 elements of the state), {RDT}",
            numbers=_austin,
            instruction=_TEXT,
        )
        for name, tfds, pose in (
            ("austin_buds", f"austin_buds_dataset{_EXTERNAL}", joints(7)),
            ("austin_sailor", f"austin_sailor_dataset{_EXTERNAL}", position() + quaternion()),
            ("austin_sirius", f"austin_sirius_dataset{_EXTERNAL}", position() + quaternion()),
            ("utaustin_mutex", "utaustin_mutex", joints(7)),
        )
    },
    "bc_z": OxeDataset(
        tfds=("bc_z",),
        robot="google_robot",
        cameras={"primary": "image"},
        state=position() + axis_angle() + (("gripper_closed", "1"),),
        action=delta(10, rotation="rotation_vector"),
        gripper=INVERTED,
        source=f"{OPENVLA} (version 0.1.0; later ones are broken), {RDT}",
        numbers=_bc_z,
    ),
    "fmb": OxeDataset(
        tfds=("fmb", "fmb_dataset"),
        robot=FRANKA,
        cameras={
            "primary": "image_side_1",
            "secondary": "image_side_2",
            "wrist": "image_wrist_1",
            "wrist_2": "image_wrist_2",
        },
        state=position() + quaternion() + gripper(),
        action=delta(10, unit="controller"),
        gripper="as stored; the sources do not say which way",
        source=f"TFDS, {OPENVLA}, {RDT}",
        numbers=_fmb,
        instruction=_TEXT,
    ),
    "droid": OxeDataset(
        tfds=("droid", "droid_100", "r2d2_faceblur"),
        robot=FRANKA,
        cameras={
            "primary": "exterior_image_1_left",
            "secondary": "exterior_image_2_left",
            "wrist": "wrist_image_left",
        },
        state=position() + euler() + gripper(),
        action=delta(15, unit="controller"),
        gripper="1 - commanded gripper_position (1 is closed)",
        source=f"TFDS (commanded Cartesian velocity, base frame), {OPENVLA}, {RDT}",
        numbers=_droid,
        instruction=_TEXT,
    ),
    "libero": OxeDataset(
        tfds=tuple(
            f"libero_{suite}{form}" for suite in ("spatial", "object", "goal", "10") for form in ("_no_noops", "")
        ),
        robot=FRANKA,
        cameras=_STATIC_AND_WRIST,
        state=position() + axis_angle() + (("finger_1", "m"), ("finger_2", "m")),
        action=delta(20, unit="controller", rotation="rotation_vector"),
        gripper="1 - the controller's input (-1 is open), clipped to [0, 1]",
        source=f"{OPENVLA}; robosuite OSC_POSE at 20 Hz",
        numbers=_libero,
        instruction=_TEXT,
    ),
}


def load_oxe(name: str | None, rlds: RldsDataset | None = None) -> OxeDataset:
    """The entry of that name, or of a folder's own name where `name` is None. Raises `Unknown`, `UsageError`."""
    if name is not None:
        if name not in OXE:
            raise Unknown("dataset", name, OXE)
        return OXE[name]
    found = [entry for entry in OXE.values() if rlds is not None and rlds.name in entry.tfds]
    if not found:
        called = (
            f"{rlds.root} calls itself {rlds.name!r}, which is none of them" if rlds else "there is no name to go by"
        )
        raise UsageError(f"give dataset=NAME ({called}): {', '.join(sorted(OXE))}")
    return found[0]
