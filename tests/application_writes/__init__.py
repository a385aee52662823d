# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What a legal application writes, on the legacy side or the unified one, as functions with drawn arguments."""
