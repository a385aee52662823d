# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The contract told a second time, in plain Python without SQL, to judge the collection by."""
