"""The Volar controller of an SO-101: configured at launch, activated when `activate:=true` says so.

ros2 launch volar_ros2 so101.launch.py policy:=runs/artifact instruction:="lift the red block"
ros2 lifecycle set /volar_controller activate        # the arm moves from here on
"""

from launch import LaunchDescription
from launch.actions import DeclareLaunchArgument, EmitEvent, RegisterEventHandler
from launch.conditions import IfCondition
from launch.events import matches_action
from launch.substitutions import LaunchConfiguration, PathJoinSubstitution
from launch_ros.actions import LifecycleNode
from launch_ros.event_handlers import OnStateTransition
from launch_ros.events.lifecycle import ChangeState
from launch_ros.parameter_descriptions import ParameterValue
from launch_ros.substitutions import FindPackageShare
from lifecycle_msgs.msg import Transition


def generate_launch_description() -> LaunchDescription:
    parameters = PathJoinSubstitution([FindPackageShare("volar_ros2"), "config", "so101.yaml"])
    controller = LifecycleNode(
        package="volar_ros2",
        executable="controller",
        name="volar_controller",
        namespace=LaunchConfiguration("namespace"),
        output="screen",
        parameters=[
            LaunchConfiguration("parameters"),
            {
                "policy": ParameterValue(LaunchConfiguration("policy"), value_type=str),
                "instruction": ParameterValue(LaunchConfiguration("instruction"), value_type=str),
            },
        ],
    )
    configure = EmitEvent(
        event=ChangeState(
            lifecycle_node_matcher=matches_action(controller), transition_id=Transition.TRANSITION_CONFIGURE
        )
    )
    activate = EmitEvent(
        event=ChangeState(
            lifecycle_node_matcher=matches_action(controller), transition_id=Transition.TRANSITION_ACTIVATE
        )
    )
    when_configured = RegisterEventHandler(
        OnStateTransition(
            target_lifecycle_node=controller, start_state="configuring", goal_state="inactive", entities=[activate]
        ),
        condition=IfCondition(LaunchConfiguration("activate")),
    )
    return LaunchDescription(
        [
            DeclareLaunchArgument("policy", description="exported artifact: volar-export writes one"),
            DeclareLaunchArgument("instruction", default_value="", description="what to do"),
            DeclareLaunchArgument("parameters", default_value=parameters, description="YAML of the controller"),
            DeclareLaunchArgument("namespace", default_value="", description="of the node and its relative topics"),
            DeclareLaunchArgument("activate", default_value="false", description="move as soon as configured"),
            when_configured,
            controller,
            configure,
        ]
    )
